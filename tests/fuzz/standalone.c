/* Runs a fuzz target without libFuzzer: over files named on the command line, or, with -n COUNT -s SEED,
 * over random inputs. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t state;

static uint64_t next(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static int run_random(long count, uint64_t seed) {
    static uint8_t bytes[8192];
    for (long i = 0; i < count; i++) {
        state = seed + (uint64_t)i + 1;
        size_t size = next() % sizeof bytes;
        for (size_t k = 0; k < size; k++) {
            bytes[k] = (uint8_t)(next() >> 24);
            if (next() % 4 == 0) { /* small numbers get further */
                bytes[k] &= 7;
            }
        }
        LLVMFuzzerTestOneInput(bytes, size);
    }
    printf("%ld random inputs from seed %llu\n", count, (unsigned long long)seed);
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 5 && strcmp(argv[1], "-n") == 0 && strcmp(argv[3], "-s") == 0) {
        return run_random(atol(argv[2]), strtoull(argv[4], NULL, 10));
    }
    static uint8_t bytes[1 << 20];
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        if (file == NULL) {
            perror(argv[i]);
            return 1;
        }
        size_t size = fread(bytes, 1, sizeof bytes, file);
        fclose(file);
        LLVMFuzzerTestOneInput(bytes, size);
    }
    printf("%d files\n", argc - 1);
    return 0;
}
