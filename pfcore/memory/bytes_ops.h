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

/* The line of memory at p will be used soon. */
#if defined(__GNUC__) || defined(__clang__)
#define PF_PREFETCH(p) __builtin_prefetch(p)
#else
#define PF_PREFETCH(p) ((void)(p))
#endif

#define PF_LONGEST_INT 20

/* A decimal integer, at most PF_LONGEST_INT bytes; how many. Two digits at a time: a division takes long. */
static inline int
pf_write_int(unsigned char *at, int64_t value)
{
    static const char pairs[201] =
        "0001020304050607080910111213141516171819" "2021222324252627282930313233343536373839"
        "4041424344454647484950515253545556575859" "6061626364656667686970717273747576777879"
        "8081828384858687888990919293949596979899";
    uint64_t left = (uint64_t)value;
    uint64_t power = 10;
    unsigned char *last;
    int sign = 0, digits = 1;
    if (value < 0) {
        left = 0 - left;
        *at++ = '-';
        sign = 1;
    }
    while (left >= power) { /* 10^19 fits, and is more than any */
        digits++;
        power *= 10;
    }
    last = at + digits;
    while (left >= 100) {
        unsigned pair = (unsigned)(left % 100) * 2;
        left /= 100;
        last -= 2;
        memcpy(last, pairs + pair, 2);
    }
    if (left >= 10)
        memcpy(last - 2, pairs + 2 * left, 2);
    else
        last[-1] = (unsigned char)('0' + left);
    return digits + sign;
}

/* How many of , [ and { stand in [p, end), in texts, too. */
static inline ptrdiff_t
pf_count_separators(const unsigned char *p, const unsigned char *end)
{
    ptrdiff_t found = 0;
#ifdef PF_SSE2
    const __m128i zero = _mm_setzero_si128();
    while (end - p >= 16) {
        /* 255 blocks at most, so that no counter of a byte overflows */
        __m128i counts = zero;
        int left = 255;
        while (left-- > 0 && end - p >= 16) {
            __m128i v = _mm_loadu_si128((const __m128i *)(const void *)p);
            __m128i open = _mm_cmpeq_epi8(_mm_or_si128(v, _mm_set1_epi8(0x20)), _mm_set1_epi8(0x7B));
            __m128i comma = _mm_cmpeq_epi8(v, _mm_set1_epi8(0x2C));
            counts = _mm_sub_epi8(counts, _mm_or_si128(open, comma));
            p += 16;
        }
        counts = _mm_sad_epu8(counts, zero);
        found += (ptrdiff_t)_mm_cvtsi128_si64(counts) + (ptrdiff_t)_mm_cvtsi128_si64(_mm_srli_si128(counts, 8));
    }
#endif
    for (; p < end; p++)
        found += *p == 0x2C || (*p | 0x20) == 0x7B;
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

/* Unmasks a frame that came (RFC 6455, section 5.3), as a rule a short one that is
 * parsed right after: all in loads and stores of 16 bytes, since a reader that
 * loads 16 bytes of what was stored 8 and 1 at a time waits for each. The last one
 * reaches beyond the frame and writes back there what it has read: the memory must
 * go on for PF_UNMASK_SLACK bytes. The key may lie right before `p`. */
#define PF_UNMASK_SLACK 16
static inline void
pf_unmask(unsigned char *p, size_t n, const unsigned char *key)
{
#ifdef PF_SSE2
    static const unsigned char ones[32] = {
        255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255};
    uint32_t word;
    __m128i mask;
    size_t i = 0;
    memcpy(&word, key, 4);
    mask = _mm_set1_epi32((int)word);
    for (; n - i >= 16; i += 16)
        _mm_storeu_si128((__m128i *)(void *)(p + i),
                         _mm_xor_si128(_mm_loadu_si128((const __m128i *)(const void *)(p + i)), mask));
    if (i < n) {
        const __m128i within = _mm_loadu_si128((const __m128i *)(const void *)(ones + 16 - (n - i)));
        _mm_storeu_si128((__m128i *)(void *)(p + i),
                         _mm_xor_si128(_mm_loadu_si128((const __m128i *)(const void *)(p + i)),
                                       _mm_and_si128(mask, within)));
    }
#else
    unsigned char copy[4];
    memcpy(copy, key, 4);
    pf_mask(p, n, copy);
#endif
}

/* SipHash-1-3 (Aumasson and Bernstein): a keyed hash made for tables that a peer
 * fills. Multiplications and shifts under one key word are not: they have pairs
 * that collide under half of all keys. */
#define PF_ROTL(x, b) (((x) << (b)) | ((x) >> (64 - (b))))
#define PF_SIPROUND(v0, v1, v2, v3)                                   \
    do {                                                              \
        v0 += v1; v2 += v3;                                           \
        v1 = PF_ROTL(v1, 13) ^ v0; v3 = PF_ROTL(v3, 16) ^ v2;         \
        v0 = PF_ROTL(v0, 32);                                         \
        v2 += v1; v0 += v3;                                           \
        v1 = PF_ROTL(v1, 17) ^ v2; v3 = PF_ROTL(v3, 21) ^ v0;         \
        v2 = PF_ROTL(v2, 32);                                         \
    } while (0)

static inline uint64_t
pf_siphash13(const unsigned char *p, size_t n, uint64_t k0, uint64_t k1)
{
    uint64_t v0 = k0 ^ UINT64_C(0x736F6D6570736575), v1 = k1 ^ UINT64_C(0x646F72616E646F6D);
    uint64_t v2 = k0 ^ UINT64_C(0x6C7967656E657261), v3 = k1 ^ UINT64_C(0x7465646279746573);
    uint64_t last = (uint64_t)n << 56, word;
    while (n >= 8) {
        memcpy(&word, p, 8);  /* little-endian machines only, as all that we build for */
        v3 ^= word;
        PF_SIPROUND(v0, v1, v2, v3);
        v0 ^= word;
        p += 8;
        n -= 8;
    }
    word = 0;
    if (n)
        memcpy(&word, p, n);
    last |= word;
    v3 ^= last;
    PF_SIPROUND(v0, v1, v2, v3);
    v0 ^= last;
    v2 ^= 0xFF;
    PF_SIPROUND(v0, v1, v2, v3);
    PF_SIPROUND(v0, v1, v2, v3);
    PF_SIPROUND(v0, v1, v2, v3);
    return v0 ^ v1 ^ v2 ^ v3;
}

/* The hash of every table here. `key` is drawn once per process, with a small
 * number added to tell tables apart. */
static inline uint64_t
pf_hash(const unsigned char *p, size_t n, uint64_t key)
{
    return pf_siphash13(p, n, key, PF_ROTL(key, 32) * UINT64_C(0x9E3779B97F4A7C15) + 1);
}

/* One step of a multiplicative mix; for fingerprints only. */
static inline uint64_t
pf_mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * UINT64_C(0xFF51AFD7ED558CCD);
    return h ^ (h >> 32);
}

/* Are two payloads of one id of one principal the same? Four lanes at a time, for a
 * multiplication takes longer than the processor needs to start three more. Whoever
 * makes two that collide deceives nobody but himself: it is no table's hash. */
static inline uint64_t
pf_fingerprint(const unsigned char *p, size_t n, uint64_t key)
{
    uint64_t lanes[4] = {key, key ^ UINT64_C(0x9E3779B97F4A7C15), ~key, key ^ UINT64_C(0xD6E8FEB86659FD93)};
    uint64_t v[4], h = key ^ (n * UINT64_C(0x9E3779B97F4A7C15));
    int i;
    while (n >= 32) {
        memcpy(v, p, 32);
        for (i = 0; i < 4; i++)
            lanes[i] = pf_mix(lanes[i], v[i]);
        p += 32;
        n -= 32;
    }
    for (i = 0; i < 4; i++)
        h = pf_mix(h, lanes[i]);
    while (n >= 8) {
        memcpy(v, p, 8);
        h = pf_mix(h, v[0]);
        p += 8;
        n -= 8;
    }
    if (n) {
        v[0] = 0;
        memcpy(v, p, n);
        h = pf_mix(h, v[0]);
    }
    h *= UINT64_C(0xC4CEB9FE1A85EC53);
    return h ^ (h >> 29);
}

/* How many values a JSON text may hold: its commas and openers, in strings or not.
 * An upper bound of the Python objects that decoding it makes. */
static inline ptrdiff_t
pf_count_values(const unsigned char *p, const unsigned char *end)
{
    ptrdiff_t found = 1;
#ifdef PF_SSE2
    const __m128i comma = _mm_set1_epi8(','), opener = _mm_set1_epi8(0x7B), bit = _mm_set1_epi8(0x20);
    while (end - p >= 16) {
        __m128i sums = _mm_setzero_si128(), bytes;
        int rounds = 0;
        while (end - p >= 16 && rounds++ < 255) {
            __m128i v = _mm_loadu_si128((const __m128i *)(const void *)p);
            __m128i hit = _mm_or_si128(_mm_cmpeq_epi8(v, comma), _mm_cmpeq_epi8(_mm_or_si128(v, bit), opener));
            sums = _mm_sub_epi8(sums, hit);
            p += 16;
        }
        bytes = _mm_sad_epu8(sums, _mm_setzero_si128());
        found += _mm_cvtsi128_si32(bytes) + _mm_cvtsi128_si32(_mm_srli_si128(bytes, 8));
    }
#endif
    for (; p < end; p++)
        found += *p == ',' || (*p | 0x20) == 0x7B;
    return found;
}

#endif
