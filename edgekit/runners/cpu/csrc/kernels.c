/* Compiled once per instruction set, with -DEK_VARIANT=<name> and its flags; every name carries the variant's. */
#include <stdint.h>

#define EK_JOIN(a, b) a##_##b
#define EK_EXPAND(a, b) EK_JOIN(a, b)
#define EK_NAME(name) EK_EXPAND(name, EK_VARIANT)

int32_t EK_NAME(ek_dot)(const int8_t *a, const int8_t *b, int32_t length);

int32_t EK_NAME(ek_dot)(const int8_t *a, const int8_t *b, int32_t length)
{
    int32_t sum = 0;
    for (int32_t i = 0; i < length; i++)
        sum += (int32_t)a[i] * b[i];
    return sum;
}
