/* Repacks weight matrices into the layout of the kernels, in one arena for all of them. */
#include "common.h"

#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels.h"

/* All weights are in one allocation, on huge pages where available: TLB misses would be a tenth of a step. */
typedef struct {
    uint8_t *data;
    size_t size;
    atomic_size_t used;
} ek_arena;

#define HUGE_PAGE ((size_t)1 << 21)

EXPORT ek_arena *ek_arena_new(size_t bytes) {
    ek_arena *a = calloc(1, sizeof *a);
    if (!a) return NULL;
    a->size = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    if (posix_memalign((void **)&a->data, HUGE_PAGE, a->size)) {
        free(a);
        return NULL;
    }
#ifdef MADV_HUGEPAGE
    madvise(a->data, a->size, MADV_HUGEPAGE);
#endif
    return a;
}

EXPORT void ek_arena_free(ek_arena *a) {
    if (a) free(a->data);
    free(a);
}

/* Size of a matrix in an arena. */
EXPORT size_t ek_matrix_bytes(int out, int in, int bits, int group, int has_offsets, int wide) {
    const size_t groups = (size_t)(round_up(in, group) / group), tiles = (size_t)(round_up(out, TILE) / TILE);
    const size_t block = TILE * ((size_t)group * bits / 8 + (wide ? 4 : 2) * (has_offsets ? 2 : 1));
    return (block * groups * tiles + 63) / 64 * 64;
}

/* Codes of one group of one tile, as the kernels read them, from rows [out, groups, group * bits / 8]; of two 4-bit
 * codes the first is in the low nibble. */
static void pack_rows(const ek_matrix *m, const uint8_t *codes, int tile, int g, uint8_t *to) {
    const size_t packed = (size_t)m->group * m->bits / 8;
    const int lanes = imin(TILE, m->out - tile * TILE);
    for (int lane = 0; lane < lanes; lane++) {
        const uint8_t *from = codes + ((size_t)(tile * TILE + lane) * m->groups + g) * packed;
        if (m->bits == 8)
            for (int i = 0; i < m->group; i += 4) memcpy(to + i * TILE + lane * 4, from + i, 4);
        else
            for (int i = 0; i < m->group; i += 8, from += 4)
                for (int j = 0; j < 4; j++) {
                    const int low = from[j / 2] >> (j % 2 * 4) & 15, high = from[2 + j / 2] >> (j % 2 * 4) & 15;
                    to[i * TILE / 2 + lane * 4 + j] = (uint8_t)(low | high << 4);
                }
    }
}

/* The codes of up to TILE rows in one column of an ONNX INT4 tensor [in, out], the first in the lowest nibble. */
static inline uint64_t column_codes(const uint8_t *plane, size_t at, int lanes) {
    uint64_t codes = 0;
    if (at % 2 == 0 && lanes == TILE) { /* little-endian, as both architectures are */
        memcpy(&codes, plane + at / 2, sizeof codes);
        return codes;
    }
    for (int lane = 0; lane < lanes; lane++, at++)
        codes |= (uint64_t)(plane[at / 2] >> (at % 2 * 4) & 15) << 4 * lane;
    return codes;
}

/* Swap the bytes of a that `mask` selects, shifted by `shift` bits, with those of b. */
static inline void exchange(uint64_t *a, uint64_t *b, int shift, uint64_t mask) {
    const uint64_t different = ((*a >> shift) ^ *b) & mask;
    *b ^= different;
    *a ^= different << shift;
}

/* Interleave 4 columns whose codes go to the low nibbles with 4 that go to the high ones: 64 bytes, 4 for each row.
 * INT4 is two's complement: code - 8, whose nibble is the code with its highest bit flipped. */
static void interleave(const uint64_t low[4], const uint64_t high[4], uint8_t *to) {
    const uint64_t nibbles = 0x0f0f0f0f0f0f0f0fu, flip = 0x8888888888888888u;
    uint64_t x[8]; /* byte i: row 2 i of column j in x[j], row 2 i + 1 in x[4 + j] */
    for (int j = 0; j < 4; j++) {
        x[j] = ((low[j] & nibbles) | (high[j] & nibbles) << 4) ^ flip;
        x[4 + j] = ((low[j] >> 4 & nibbles) | (high[j] & ~nibbles)) ^ flip;
    }
    /* Transpose 8 x 8 bytes (Warren, Hacker's Delight, section 7-3). */
    for (int i = 0; i < 4; i++) exchange(&x[i], &x[i + 4], 32, 0x00000000ffffffffu);
    for (int i = 0; i < 4; i++) exchange(&x[i + i / 2 * 2], &x[i + i / 2 * 2 + 2], 16, 0x0000ffff0000ffffu);
    for (int i = 0; i < 8; i += 2) exchange(&x[i], &x[i + 1], 8, 0x00ff00ff00ff00ffu);
    memcpy(to, x, sizeof x);
}

/* The same from columns: an ONNX INT4 tensor [in, out], or for 8 bits two, of the high and the low nibbles. */
static void pack_columns(const ek_matrix *m, const uint8_t *codes, const uint8_t *low, int tile, int g, uint8_t *to) {
    const int lanes = imin(TILE, m->out - tile * TILE);
    size_t at = (size_t)g * m->group * m->out + (size_t)tile * TILE;
    uint64_t a[4], b[4];
    for (int i = 0; i < m->group; i += low ? 4 : 8, to += 64) {
        for (int j = 0; j < 4; j++, at += m->out) {
            a[j] = column_codes(low ? low : codes, at, lanes);
            if (low) b[j] = column_codes(codes, at, lanes);
        }
        if (!low)
            for (int j = 0; j < 4; j++, at += m->out) b[j] = column_codes(codes, at, lanes);
        interleave(a, b, to);
    }
}

/* Repack a matrix into the layout of kernels.h. Scales and offsets are float32 [out, groups]; without offsets,
 * `zero_point` is subtracted from every code. Codes are rows [out, groups, group * bits / 8], or `by_columns`: see
 * pack_rows and pack_columns; `low` is NULL but for 8-bit columns. Returns NULL if the arena is full or the kernels are
 * not available. */
EXPORT ek_matrix *ek_matrix_new(ek_arena *arena, const char *kernels, int out, int in, int bits, int group,
                                int by_columns, const uint8_t *codes, const uint8_t *low, const float *scales,
                                const float *offsets, int zero_point, int wide, const float *bias) {
    const ek_kernels *k = ek_find(kernels);
    ek_matrix *m = calloc(1, sizeof *m);
    const int groups = round_up(in, group) / group, tiles = round_up(out, TILE) / TILE;
    const size_t packed = (size_t)group * bits / 8, factor = wide ? 4 : 2;
    if (!m || !k) {
        free(m);
        return NULL;
    }
    *m = (ek_matrix){.out = out, .in = in, .padded = groups * group, .bits = bits, .group = group, .groups = groups,
                     .tiles = tiles, .zero_point = offsets ? -1 : zero_point, .wide = wide != 0};
    m->group_bytes = TILE * (packed + factor * (offsets ? 2 : 1));
    const size_t bytes = ek_matrix_bytes(out, in, bits, group, offsets != NULL, wide);
    const size_t at = atomic_fetch_add(&arena->used, bytes);
    m->data = arena->data + at;
    if (at + bytes > arena->size || (bias && reallocate((void **)&m->bias, (size_t)tiles * TILE * sizeof(float)))) {
        free(m);
        return NULL;
    }
    if (bias) {
        memset(m->bias, 0, (size_t)tiles * TILE * sizeof(float));
        memcpy(m->bias, bias, (size_t)out * sizeof(float));
    }
    /* In the order of the source, so that the file is read from start to end. */
    const int blocks = tiles * groups;
    for (int block = 0; block < blocks; block++) {
        const int tile = by_columns ? block % tiles : block / groups, g = by_columns ? block / tiles : block % groups;
        const int lanes = imin(TILE, out - tile * TILE);
        uint8_t *to = m->data + ((size_t)tile * groups + g) * m->group_bytes;
        float factors[2][TILE] = {{0}, {0}};
        if (lanes < TILE) memset(to, 0, m->group_bytes);
        if (by_columns) pack_columns(m, codes, low, tile, g, to);
        else pack_rows(m, codes, tile, g, to);
        for (int lane = 0; lane < lanes; lane++) {
            const size_t of = (size_t)(tile * TILE + lane) * groups + g;
            factors[0][lane] = scales[of];
            if (offsets) factors[1][lane] = offsets[of];
        }
        to += packed * TILE;
        for (int part = 0; part < (offsets ? 2 : 1); part++, to += TILE * factor) {
            if (wide) memcpy(to, factors[part], sizeof factors[part]);
            else k->to_half(factors[part], TILE, (uint16_t *)to);
        }
    }
    return m;
}

EXPORT void ek_matrix_free(ek_matrix *m) {
    if (!m) return;
    free(m->bias);
    free(m);
}
