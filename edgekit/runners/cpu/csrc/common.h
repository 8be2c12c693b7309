/* Exported symbols, sizes and allocation, for the files around a model. Included first: it asks for POSIX. */
#ifndef EK_COMMON_H
#define EK_COMMON_H

#define _DEFAULT_SOURCE
#define _DARWIN_C_SOURCE
#include <stdlib.h>

#define EXPORT __attribute__((visibility("default")))

static inline int imin(int a, int b) { return a < b ? a : b; }
static inline int imax(int a, int b) { return a > b ? a : b; }
static inline int round_up(int size, int step) { return (size + step - 1) / step * step; }

/* Replace an allocation, without keeping its contents; 0 on success. */
static inline int reallocate(void **pointer, size_t bytes) {
    free(*pointer);
    *pointer = NULL;
    return posix_memalign(pointer, 64, bytes ? bytes : 64);
}

#endif
