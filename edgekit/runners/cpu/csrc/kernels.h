/* What the kernels compute, and the form they want matrices and KV cache in. */
#ifndef EK_KERNELS_H
#define EK_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TILE 16 /* outputs that lie side by side; a multiple of every instruction set's lanes */

/* A matrix of codes of 4 or 8 bits, `out` rows of `in` columns in groups along the columns; `padded` columns in whole
 * groups. It lies in tiles of TILE rows; a tile in groups; a group is
 *
 *     codes, so that 4 columns of one row are neighbours, then the same columns of the next row …
 *         8 bits: a byte each, 4 columns of all rows in 64 bytes
 *         4 bits: columns 0..3 of all rows in the low halves of 64 bytes, columns 4..7 in the high ones
 *     TILE scales, TILE offsets (unless `zero_point` says it all): float16, or float32 where that would lose something
 *
 * and a weight is scale · code + offset, or scale · (code - zero_point).
 */
typedef struct {
    int out, in, padded, bits, group, groups, tiles;
    int zero_point; /* -1: each group has offsets of its own */
    bool wide;      /* scales and offsets in float32 */
    size_t group_bytes;
    uint8_t *data;
    float *bias; /* padded to whole tiles; NULL: none */
} ek_matrix;

/* Rows of activations, rounded to 8 bits in groups. */
typedef struct {
    int8_t *codes;  /* [rows, padded] */
    float *scales;  /* [rows, groups] */
    float *sums;    /* [rows, groups]: of what the codes stand for */
    int32_t *whole; /* [rows, groups]: of the codes */
} ek_rows;

/* Attention looks back in spans of so many positions, counted from the first of the sequence. What each span gives is
 * joined in order: whether one thread takes them all or several share them, the sums are the same. */
#define SPAN 256
#define MOST_QUERIES 8

/* What a query has of the positions so far: sum and values are relative to e^largest. */
typedef struct {
    float largest, sum;
    float *values; /* [head_dim] */
} ek_seen;

/* Queries that read the same keys and values. */
typedef struct {
    int rows, head_dim;
    const float *queries[MOST_QUERIES];             /* scaled */
    int first[MOST_QUERIES], end[MOST_QUERIES];     /* the positions that each sees */
    const uint16_t *keys;                           /* [positions / TILE, head_dim, TILE] */
    const uint16_t *values;                         /* [positions, head_dim] */
    float *scores;                                  /* [rows, SPAN]: scratch */
} ek_attention;

typedef struct {
    const char *name;
    /* y[row, out] = x · matrix, for tiles [first, end); y's rows are `stride` apart. */
    void (*multiply)(const ek_matrix *, const ek_rows *, int rows, int first, int end, float *y, size_t stride);
    /* One row into place `row`. */
    void (*round_row)(const float *x, int in, int group, int padded, const ek_rows *to, int row);
    /* h += branch (normed first, if it has a norm); x = norm of h. Branch NULL: nothing is added. x NULL: no norm. */
    void (*add_norm)(float *h, const float *branch, const float *branch_norm, const float *norm, float eps, int size,
                     float *x);
    /* A head: normed if it has a norm, turned, times scale. */
    void (*turn)(const float *x, const float *norm, float eps, const float *cosines, const float *sines, int head_dim,
                 float scale, float *y);
    void (*gate)(const float *gate, const float *up, int size, bool gelu, float *y);
    /* What the queries see of span `span`; those that see nothing of it are left as they are. */
    void (*attend)(const ek_attention *, int span, ek_seen seen[MOST_QUERIES]);
    /* Add what was seen next. */
    void (*join)(ek_seen *seen, const ek_seen *next, int head_dim);
    /* Make of it what the query gets. */
    void (*finish)(const ek_seen *seen, int head_dim, float *y);
    void (*store_key)(const float *x, int head_dim, uint16_t *keys, int position);
    void (*store_value)(const float *x, int head_dim, uint16_t *values, int position);
    void (*to_half)(const float *x, size_t count, uint16_t *y);
    void (*read_row)(const ek_matrix *, int row, float scale, float *y);
} ek_kernels;

const ek_kernels *ek_find(const char *name); /* dispatch.c */

#endif
