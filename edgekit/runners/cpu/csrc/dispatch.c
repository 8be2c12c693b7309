/* Selects among the compiled variants of kernels.c at run time. This file is compiled for the baseline instruction set.
 *
 * The build defines EK_VARIANTS(X) as X(name) for each variant of kernels.c that it compiled, best first. The compiler
 * may have been unable to build some of them, so variants may only be named through this macro.
 */
#include <string.h>

#include "kernels.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#ifndef HWCAP_ASIMDHP
#define HWCAP_ASIMDHP (1UL << 10)
#endif
#ifndef HWCAP_ASIMDDP
#define HWCAP_ASIMDDP (1UL << 20)
#endif
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#endif

#define EK_EXPORT __attribute__((visibility("default")))

EK_EXPORT const char *ek_variants(void);
EK_EXPORT const char *ek_best(void);

static inline int runs_plain(void)
{
    return 1;
}

#if defined(__x86_64__)
/* CPUID and XGETBV, as Intel's manual has it (volume 1, chapters 14 and 15). Not __builtin_cpu_supports, which is always
 * false with zig's run-time library. */
#define LEAF1_ECX (1U << 12 | 1U << 27 | 1U << 28 | 1U << 29)           /* FMA, OSXSAVE, AVX, F16C */
#define LEAF7_EBX (1U << 5)                                             /* AVX2 */
#define LEAF7_EBX_512 (1U << 16 | 1U << 17 | 1U << 30 | 1U << 31)       /* AVX512F, DQ, BW, VL */
#define LEAF7_ECX_512 (1U << 11)                                        /* AVX512_VNNI */
#define SAVED_256 0x06U /* XCR0: the operating system saves xmm and ymm registers */
#define SAVED_512 0xe6U /* and opmask and all of the zmm registers */

static int cpu_supports(unsigned leaf7_ebx, unsigned leaf7_ecx, unsigned saved)
{
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & LEAF1_ECX) != LEAF1_ECX)
        return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & saved) != saved || !__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return 0;
    return (b & leaf7_ebx) == leaf7_ebx && (c & leaf7_ecx) == leaf7_ecx;
}

static inline int runs_avx2(void)
{
    return cpu_supports(LEAF7_EBX, 0, SAVED_256);
}

static inline int runs_avx512vnni(void)
{
    return cpu_supports(LEAF7_EBX | LEAF7_EBX_512, LEAF7_ECX_512, SAVED_512);
}
#elif defined(__aarch64__)
static inline int runs_dotprod(void)
{
#if defined(__linux__)
    unsigned long needed = HWCAP_ASIMDDP | HWCAP_ASIMDHP;
    return (getauxval(AT_HWCAP) & needed) == needed;
#elif defined(__APPLE__)
    int dot = 0, half = 0;
    size_t size = sizeof dot;
    if (sysctlbyname("hw.optional.arm.FEAT_DotProd", &dot, &size, NULL, 0) != 0)
        return 0;
    size = sizeof half;
    return dot && sysctlbyname("hw.optional.arm.FEAT_FP16", &half, &size, NULL, 0) == 0 && half;
#else
    return 0;
#endif
}
#endif

/* The variants that this processor supports, best first, separated by spaces. */
const char *ek_variants(void)
{
    /* A race is harmless: every thread writes the same string. */
    static char names[256];
    char found[sizeof names] = "";
#define EK_ADD(name) \
    if (runs_##name()) \
        strcat(strcat(found, found[0] ? " " : ""), #name);
    EK_VARIANTS(EK_ADD)
#undef EK_ADD
    memcpy(names, found, sizeof names);
    return names;
}

/* The best supported variant, used unless the user names another; an empty string if none is supported. */
const char *ek_best(void)
{
#define EK_FIRST(name) \
    if (runs_##name()) \
        return #name;
    EK_VARIANTS(EK_FIRST)
#undef EK_FIRST
    return "";
}

#define EK_DECLARE(name) extern const ek_kernels ek_kernels_##name;
EK_VARIANTS(EK_DECLARE)
#undef EK_DECLARE

/* The kernels of a variant; NULL if it is unknown or this processor does not support it. */
const ek_kernels *ek_find(const char *name)
{
#define EK_TRY(variant) \
    if (!strcmp(name, #variant) && runs_##variant()) \
        return &ek_kernels_##variant;
    EK_VARIANTS(EK_TRY)
#undef EK_TRY
    return NULL;
}
