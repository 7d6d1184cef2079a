# bytes_ops.h, declared once: pure functions over bytes, which read nothing outside of what they are given.

from libc.stdint cimport int64_t, uint64_t

cdef extern from "memory/bytes_ops.h" nogil:
    # -- texts
    # To the first byte that ends a plain run of a JSON text; to the first that has to be escaped.
    const unsigned char* pf_string_run(const unsigned char* p, const unsigned char* end) noexcept
    const unsigned char* pf_escape_run(const unsigned char* p, const unsigned char* end) noexcept
    # The length of the UTF-8 sequence at p, 0 where it is none (RFC 3629); is all of it well-formed?
    int pf_utf8_sequence(const unsigned char* p, const unsigned char* end) noexcept
    bint pf_utf8_valid(const unsigned char* p, const unsigned char* end) noexcept
    bint pf_contains_null(const unsigned char* p, const unsigned char* end) noexcept

    # -- how much there is in a document
    Py_ssize_t pf_count_openers(const unsigned char* p, const unsigned char* end, Py_ssize_t enough) noexcept
    Py_ssize_t pf_count_separators(const unsigned char* p, const unsigned char* end) noexcept
    Py_ssize_t pf_count_values(const unsigned char* p, const unsigned char* end) noexcept

    # -- numbers and frames
    int PF_LONGEST_INT
    int pf_write_int(unsigned char* at, int64_t value) noexcept
    void pf_mask(unsigned char* p, size_t n, const unsigned char* key) noexcept
    int PF_UNMASK_SLACK
    void pf_unmask(unsigned char* p, size_t n, const unsigned char* key) noexcept
    int pf_ctz64(uint64_t x) noexcept
    void pf_prefetch "PF_PREFETCH"(const void* p) noexcept

    # -- hashes: keyed, so that no peer knows what collides
    uint64_t pf_siphash13(const unsigned char* p, size_t n, uint64_t k0, uint64_t k1) noexcept
    uint64_t pf_hash(const unsigned char* p, size_t n, uint64_t key) noexcept
    uint64_t pf_fingerprint(const unsigned char* p, size_t n, uint64_t key) noexcept
