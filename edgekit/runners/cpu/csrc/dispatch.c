/* Which of the compiled variants this processor can run. Compiled once, for any processor of the architecture.
 *
 * The build defines EK_VARIANTS(X) as X(name) for each variant of kernels.c that it compiled, best first: one that
 * the compiler could not make is not named, so nothing here may name a variant but through it.
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
#endif

#define EK_EXPORT __attribute__((visibility("default")))

EK_EXPORT const char *ek_variants(void);
EK_EXPORT const char *ek_best(void);

static inline int runs_plain(void)
{
    return 1;
}

#if defined(__x86_64__)
/* The builtin asks the operating system too whether it saves the wide registers. */
static inline int runs_avx2(void)
{
    __builtin_cpu_init();
    /* gcc 10 and older do not know "f16c"; every processor with AVX2 has it. */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static inline int runs_avx512vnni(void)
{
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
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

/* The variants that this processor runs, best first, with a space between them. */
const char *ek_variants(void)
{
    /* Two threads that write this at once write the same. */
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

/* The first of them, which is taken unless the user names another; empty if there is none. */
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

/* The kernels of a variant; NULL if there are none that this processor runs. */
const ek_kernels *ek_find(const char *name)
{
#define EK_TRY(variant) \
    if (!strcmp(name, #variant) && runs_##variant()) \
        return &ek_kernels_##variant;
    EK_VARIANTS(EK_TRY)
#undef EK_TRY
    return NULL;
}
