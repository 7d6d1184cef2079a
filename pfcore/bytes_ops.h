/* Byte scans that a compiler does not vectorise by itself.
 *
 * Every function reads only inside [p, end). SSE2 is part of every x86-64;
 * elsewhere the portable word-at-a-time version below is used.
 */
#ifndef PFCORE_BYTES_OPS_H
#define PFCORE_BYTES_OPS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__) || (defined(_M_X64) && !defined(_M_ARM64EC))
#include <emmintrin.h>
#define PF_SSE2 1
#endif

#if defined(_MSC_VER)
#include <intrin.h>
static inline int pf_ctz32(uint32_t x) { unsigned long i; _BitScanForward(&i, x); return (int)i; }
static inline int pf_ctz64(uint64_t x) { unsigned long i; _BitScanForward64(&i, x); return (int)i; }
#else
static inline int pf_ctz32(uint32_t x) { return __builtin_ctz(x); }
static inline int pf_ctz64(uint64_t x) { return __builtin_ctzll(x); }
#endif

/* First byte that ends a plain run inside a JSON string: '"', '\\', a control
 * character, or a byte of a multi-byte UTF-8 sequence. Returns `end` if none. */
static inline const unsigned char *
pf_string_run(const unsigned char *p, const unsigned char *end)
{
#ifdef PF_SSE2
    const __m128i quote = _mm_set1_epi8('"');
    const __m128i slash = _mm_set1_epi8('\\');
    const __m128i space = _mm_set1_epi8(0x20);
    while (end - p >= 16) {
        __m128i v = _mm_loadu_si128((const __m128i *)(const void *)p);
        /* signed compare: bytes from 0x80 count as negative, so "< 0x20" finds them as well */
        __m128i hit = _mm_or_si128(_mm_cmplt_epi8(v, space),
                                   _mm_or_si128(_mm_cmpeq_epi8(v, quote), _mm_cmpeq_epi8(v, slash)));
        uint32_t mask = (uint32_t)_mm_movemask_epi8(hit);
        if (mask)
            return p + pf_ctz32(mask);
        p += 16;
    }
#else
    const uint64_t ones = UINT64_C(0x0101010101010101), high = UINT64_C(0x8080808080808080);
    while (end - p >= 8) {
        uint64_t v, quote, slash, control;
        memcpy(&v, p, 8);
        quote = v ^ (ones * '"');
        slash = v ^ (ones * '\\');
        control = (v - ones * 0x20) & ~v;
        if ((((quote - ones) & ~quote) | ((slash - ones) & ~slash) | control | v) & high)
            break;
        p += 8;
    }
#endif
    while (p < end && *p >= 0x20 && *p < 0x80 && *p != '"' && *p != '\\')
        p++;
    return p;
}

/* First byte that a JSON string cannot hold as it is: '"', '\\' or a control
 * character. Returns `end` if none. */
static inline const unsigned char *
pf_escape_run(const unsigned char *p, const unsigned char *end)
{
#ifdef PF_SSE2
    const __m128i quote = _mm_set1_epi8('"');
    const __m128i slash = _mm_set1_epi8('\\');
    const __m128i limit = _mm_set1_epi8(0x1F);
    while (end - p >= 16) {
        __m128i v = _mm_loadu_si128((const __m128i *)(const void *)p);
        /* unsigned "<= 0x1F": the minimum of the byte and 0x1F is the byte itself */
        __m128i hit = _mm_or_si128(_mm_cmpeq_epi8(_mm_min_epu8(v, limit), v),
                                   _mm_or_si128(_mm_cmpeq_epi8(v, quote), _mm_cmpeq_epi8(v, slash)));
        uint32_t mask = (uint32_t)_mm_movemask_epi8(hit);
        if (mask)
            return p + pf_ctz32(mask);
        p += 16;
    }
#endif
    while (p < end && *p >= 0x20 && *p != '"' && *p != '\\')
        p++;
    return p;
}

/* Length (1..4) of the well-formed UTF-8 sequence at p (RFC 3629), 0 if there is none. */
static inline int
pf_utf8_sequence(const unsigned char *p, const unsigned char *end)
{
    unsigned char a = p[0];
    ptrdiff_t left = end - p;
    if (a < 0x80)
        return 1;
    if (a < 0xC2)
        return 0;
    if (a < 0xE0)
        return left >= 2 && (p[1] & 0xC0) == 0x80 ? 2 : 0;
    if (a < 0xF0) {
        if (left < 3 || (p[1] & 0xC0) != 0x80 || (p[2] & 0xC0) != 0x80)
            return 0;
        if ((a == 0xE0 && p[1] < 0xA0) || (a == 0xED && p[1] > 0x9F))
            return 0;
        return 3;
    }
    if (a < 0xF5) {
        if (left < 4 || (p[1] & 0xC0) != 0x80 || (p[2] & 0xC0) != 0x80 || (p[3] & 0xC0) != 0x80)
            return 0;
        if ((a == 0xF0 && p[1] < 0x90) || (a == 0xF4 && p[1] > 0x8F))
            return 0;
        return 4;
    }
    return 0;
}

/* Is [p, end) well-formed UTF-8? */
static inline int
pf_utf8_valid(const unsigned char *p, const unsigned char *end)
{
    while (p < end) {
#ifdef PF_SSE2
        while (end - p >= 16
               && !_mm_movemask_epi8(_mm_loadu_si128((const __m128i *)(const void *)p)))
            p += 16;
        if (p >= end)
            break;
#endif
        int n = pf_utf8_sequence(p, end);
        if (!n)
            return 0;
        p += n;
    }
    return 1;
}

/* How many '[' and '{' stand in [p, end), inside strings or not: an upper
 * bound of the nesting depth that costs a fraction of a parse. Stops once it
 * is above `enough`. */
static inline ptrdiff_t
pf_count_openers(const unsigned char *p, const unsigned char *end, ptrdiff_t enough)
{
    ptrdiff_t found = 0;
    while (p < end && found <= enough) {
#ifdef PF_SSE2
        if (end - p >= 16) {
            /* '[' is 0x5B and '{' is 0x7B: equal but for bit 0x20 */
            __m128i v = _mm_loadu_si128((const __m128i *)(const void *)p);
            __m128i hit = _mm_cmpeq_epi8(_mm_or_si128(v, _mm_set1_epi8(0x20)), _mm_set1_epi8(0x7B));
            uint32_t mask = (uint32_t)_mm_movemask_epi8(hit);
            while (mask) {
                found++;
                mask &= mask - 1;
            }
            p += 16;
            continue;
        }
#endif
        found += (*p | 0x20) == 0x7B;
        p++;
    }
    return found;
}

/* Does "null" stand anywhere in [p, end)? */
static inline int
pf_contains_null(const unsigned char *p, const unsigned char *end)
{
#ifdef PF_SSE2
    const __m128i first = _mm_set1_epi8('n');
    const __m128i third = _mm_set1_epi8('l');
    while (end - p >= 18) {
        /* in most text 'n' is common and 'l' two places on is not */
        __m128i hit = _mm_and_si128(
            _mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)(const void *)p), first),
            _mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)(const void *)(p + 2)), third));
        uint32_t mask = (uint32_t)_mm_movemask_epi8(hit);
        while (mask) {
            const unsigned char *at = p + pf_ctz32(mask);
            if (end - at >= 4 && memcmp(at, "null", 4) == 0)
                return 1;
            mask &= mask - 1;
        }
        p += 16;
    }
#endif
    for (; end - p >= 4; p++)
        if (memcmp(p, "null", 4) == 0)
            return 1;
    return 0;
}

/* XOR [p, p+n) with the four key bytes in wire order (RFC 6455, section 5.3). */
static inline void
pf_mask(unsigned char *p, size_t n, const unsigned char key[4])
{
    uint32_t word;
    uint64_t wide;
    size_t i = 0;
    memcpy(&word, key, 4);
    wide = ((uint64_t)word << 32) | word;
#ifdef PF_SSE2
    {
        const __m128i mask = _mm_set1_epi32((int)word);
        for (; n - i >= 16; i += 16)
            _mm_storeu_si128((__m128i *)(void *)(p + i),
                             _mm_xor_si128(_mm_loadu_si128((const __m128i *)(const void *)(p + i)), mask));
    }
#endif
    for (; n - i >= 8; i += 8) {
        uint64_t v;
        memcpy(&v, p + i, 8);
        v ^= wide;
        memcpy(p + i, &v, 8);
    }
    for (; i < n; i++)
        p[i] = (unsigned char)(p[i] ^ key[i & 3]);
}

/* A keyed 64-bit hash of a short byte string. The key is drawn once per
 * process, so a peer that chooses packet ids cannot aim for collisions. */
static inline uint64_t
pf_hash(const unsigned char *p, size_t n, uint64_t key)
{
    uint64_t h = key ^ (n * UINT64_C(0x9E3779B97F4A7C15)), v;
    while (n >= 8) {
        memcpy(&v, p, 8);
        h = (h ^ v) * UINT64_C(0xFF51AFD7ED558CCD);
        h ^= h >> 32;
        p += 8;
        n -= 8;
    }
    if (n) {
        v = 0;
        memcpy(&v, p, n);
        h = (h ^ v) * UINT64_C(0xFF51AFD7ED558CCD);
        h ^= h >> 32;
    }
    h *= UINT64_C(0xC4CEB9FE1A85EC53);
    return h ^ (h >> 29);
}

/* As pf_hash, for longer strings: four lanes at a time, for a multiplication takes
 * longer than the processor needs to start three more. */
static inline uint64_t
pf_fingerprint(const unsigned char *p, size_t n, uint64_t key)
{
    uint64_t lanes[4] = {key, key ^ UINT64_C(0x9E3779B97F4A7C15), ~key, key ^ UINT64_C(0xD6E8FEB86659FD93)};
    uint64_t v[4];
    size_t length = n;
    int i;
    while (n >= 32) {
        memcpy(v, p, 32);
        for (i = 0; i < 4; i++) {
            lanes[i] = (lanes[i] ^ v[i]) * UINT64_C(0xFF51AFD7ED558CCD);
            lanes[i] ^= lanes[i] >> 32;
        }
        p += 32;
        n -= 32;
    }
    return pf_hash(p, n, pf_hash((const unsigned char *)lanes, sizeof lanes, key ^ length));
}

#endif
