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

/* Repack a matrix into the layout of kernels.h. Scales and offsets are float32 [out, groups]; without offsets,
 * `zero_point` is subtracted from every code. Codes are [out, groups, group · bits / 8], of two 4-bit codes the first
 * in the low nibble. Returns NULL if the arena is full or the kernels are not available. */
EXPORT ek_matrix *ek_matrix_new(ek_arena *arena, const char *kernels, int out, int in, int bits, int group,
                                const uint8_t *codes, const float *scales, const float *offsets, int zero_point,
                                int wide, const float *bias) {
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
    for (int tile = 0; tile < tiles; tile++)
        for (int g = 0; g < groups; g++) {
            uint8_t *to = m->data + ((size_t)tile * groups + g) * m->group_bytes;
            float factors[2][TILE] = {{0}, {0}};
            const int lanes = imin(TILE, out - tile * TILE);
            if (lanes < TILE) memset(to, 0, m->group_bytes);
            for (int lane = 0; lane < lanes; lane++) {
                const size_t at = (size_t)(tile * TILE + lane) * groups + g;
                const uint8_t *from = codes + at * packed;
                if (bits == 8)
                    for (int i = 0; i < group; i += 4) memcpy(to + i * TILE + lane * 4, from + i, 4);
                else
                    for (int i = 0; i < group; i += 8, from += 4)
                        for (int j = 0; j < 4; j++) {
                            const int low = from[j / 2] >> (j % 2 * 4) & 15, high = from[2 + j / 2] >> (j % 2 * 4) & 15;
                            to[i * TILE / 2 + lane * 4 + j] = (uint8_t)(low | high << 4);
                        }
                factors[0][lane] = scales[at];
                if (offsets) factors[1][lane] = offsets[at];
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
