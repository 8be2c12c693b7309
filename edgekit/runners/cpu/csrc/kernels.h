/* Interface of the compute kernels, and the layout in which they read weights and KV cache. */
#ifndef EK_KERNELS_H
#define EK_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TILE 16 /* rows of a matrix that are interleaved; a multiple of LANES on every instruction set */

/* A weight matrix quantized to 4 or 8 bits: `out` rows of `in` columns, in groups along the columns. Columns are padded
 * to full groups (`padded`), rows to full tiles. The layout is interleaved: tiles of TILE rows; in a tile one block per
 * group; in a block
 *
 *     codes   4 consecutive columns of row 0, the same 4 columns of row 1, …, then the next columns
 *             8 bits: one byte per code, 4 columns of all TILE rows in 64 bytes
 *             4 bits: columns 0..3 of all rows in the low nibbles of 64 bytes, columns 4..7 in the high nibbles
 *     scales  TILE
 *     offsets TILE, absent if `zero_point` >= 0
 *
 * Scales and offsets are float16, or float32 (`wide`) where float16 would lose precision. A weight is
 * scale · code + offset, or scale · (code - zero_point).
 */
typedef struct {
    int out, in, padded, bits, group, groups, tiles;
    int zero_point; /* of all groups; -1: each group has an offset */
    bool wide;      /* scales and offsets are float32 */
    size_t group_bytes;
    uint8_t *data;
    float *bias; /* padded to full tiles, or NULL */
} ek_matrix;

/* Activations quantized to 8 bits, symmetrically in groups (ggml's Q8_1 has the same fields). */
typedef struct {
    int8_t *codes;      /* [rows, padded] */
    float *scales;      /* [rows, groups] */
    float *sums;        /* [rows, groups]: scale · sum of the codes */
    int32_t *code_sums; /* [rows, groups] */
} ek_rows;

/* Attention computes the softmax online, one span of KV positions after the other, with spans aligned to the start of
 * the sequence (split-KV, as in Flash-Decoding). Partial results are merged in the order of the spans, so that the sums
 * are the same whether one thread computes all spans of a query or several share them. */
#define SPAN 256
#define MAX_QUERIES 8

/* Attention of one query over some of its positions; sum and values are relative to e^max. */
typedef struct {
    float max, sum;
    float *values; /* [head_dim] */
} ek_partial_attention;

/* Queries that read the same keys and values. */
typedef struct {
    int rows, head_dim;
    const float *queries[MAX_QUERIES];           /* scaled */
    int first[MAX_QUERIES], end[MAX_QUERIES];    /* visible positions of each query */
    const uint16_t *keys;                        /* [positions / TILE, head_dim, TILE] */
    const uint16_t *values;                      /* [positions, head_dim] */
    float *scores;                               /* [rows, SPAN]: scratch */
} ek_attention;

typedef struct {
    const char *name;
    /* y[row, out] = x · matrix^T (+ bias) for tiles [first, end) of the matrix; rows of y are `stride` apart. */
    void (*multiply)(const ek_matrix *, const ek_rows *, int rows, int first, int end, float *y, size_t stride);
    /* Quantize one row of activations into row `row` of `to`. */
    void (*quantize_row_q8)(const float *x, int in, int group, int padded, const ek_rows *to, int row);
    /* h += branch, or RMSNorm(branch) with branch_norm; then x = RMSNorm(h). NULL branch or x: skip that step. */
    void (*add_norm)(float *h, const float *branch, const float *branch_norm, const float *norm, float eps, int size,
                     float *x);
    /* Rotate the first `rotary_dim` elements of one head (NeoX style), after RMSNorm if norm is given, and scale it. */
    void (*rope)(const float *x, const float *norm, float eps, const float *cosines, const float *sines, int rotary_dim,
                 int head_dim, float scale, float *y);
    /* y = silu(gate) · up, or gelu(gate) · up. */
    void (*gate)(const float *gate, const float *up, int size, bool gelu, float *y);
    /* Attention over one span; `partial` of queries that see nothing of it is left unchanged. */
    void (*attend)(const ek_attention *, int span, ek_partial_attention partial[MAX_QUERIES]);
    /* Merge the next span's result into `partial`. */
    void (*merge)(ek_partial_attention *partial, const ek_partial_attention *next, int head_dim);
    /* Divide by the sum: the attention output of the query. */
    void (*finish)(const ek_partial_attention *partial, int head_dim, float *y);
    void (*store_key)(const float *x, int head_dim, uint16_t *keys, int position);
    void (*store_value)(const float *x, int head_dim, uint16_t *values, int position);
    void (*to_half)(const float *x, size_t count, uint16_t *y);
    /* Dequantize one row, times scale. */
    void (*dequantize_row)(const ek_matrix *, int row, float scale, float *y);
} ek_kernels;

const ek_kernels *ek_find(const char *name); /* dispatch.c */

#endif
