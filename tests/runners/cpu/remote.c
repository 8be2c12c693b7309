/* Calls functions of a shared library on behalf of another process (remote.py), perhaps of another architecture.
 *
 * Commands arrive on standard input in 64-bit words. Signatures need not be known: in the calling conventions of x86-64
 * and aarch64, integers and floats are passed independently of their relative order.
 *
 *     0 size                                       malloc -> address
 *     1 address                                    free
 *     2 address size bytes…                        write memory
 *     3 address size                               read memory -> bytes
 *     4 size name…, 14 integers, 2 floats (bits)   call -> result
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t call(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                      uint64_t, uint64_t, uint64_t, uint64_t, float, float);

static void get(void *to, size_t size) {
    if (fread(to, 1, size, stdin) != size) exit(0);
}

static void put(const void *from, size_t size) {
    fwrite(from, 1, size, stdout);
    fflush(stdout);
}

static uint64_t word(void) {
    uint64_t value;
    get(&value, sizeof value);
    return value;
}

static float number(void) {
    const uint32_t bits = (uint32_t)word();
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint64_t run(void *library, uint64_t size) {
    char name[64] = "";
    uint64_t n[14];
    get(name, size < sizeof name ? size : sizeof name - 1);
    for (int i = 0; i < 14; i++) n[i] = word();
    const float a = number(), b = number();
    void *found = dlsym(library, name);
    call *function;
    if (!found) {
        fprintf(stderr, "no %s\n", name);
        exit(2);
    }
    memcpy(&function, &found, sizeof function);
    return function(n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], n[11], n[12], n[13], a, b);
}

int main(int count, char **arguments) {
    void *library = count == 2 ? dlopen(arguments[1], RTLD_NOW) : NULL;
    if (!library) {
        fprintf(stderr, "%s\n", count == 2 ? dlerror() : "usage: remote LIBRARY");
        return 2;
    }
    for (;;) {
        const uint64_t command = word(), first = word();
        uint64_t result;
        switch (command) {
            case 0:
                result = (uint64_t)(uintptr_t)malloc(first);
                put(&result, sizeof result);
                break;
            case 1:
                free((void *)(uintptr_t)first);
                break;
            case 2:
                get((void *)(uintptr_t)first, word());
                break;
            case 3:
                put((void *)(uintptr_t)first, word());
                break;
            default:
                result = run(library, first);
                put(&result, sizeof result);
        }
    }
}
