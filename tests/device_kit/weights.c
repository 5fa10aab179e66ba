/*
 * Writes the weights of every resize from 1..SIDE samples to 1..SIDE samples, both kernels: where each output starts
 * to read, how many samples it reads, and their weights. A weight that is one unit off moves a pixel only now and
 * then, so pictures alone would not show every rounding that differs.
 *
 * Use: weights SIDE > RESULTS
 */
#define POCKETLENS_PREPROCESS_IMPLEMENTATION
#include "pocketlens_preprocess.h"

#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    const int32_t side = argc == 2 ? (int32_t)strtol(argv[1], NULL, 10) : 0;
    double *exact = (double *)malloc((size_t)(side + 1) * sizeof *exact);
    int32_t *fixed = (int32_t *)malloc((size_t)(side + 1) * sizeof *fixed);
    int32_t filter;
    int32_t before;
    int32_t after;
    for (filter = 0; filter < 2; ++filter) {
        for (before = 1; before <= side; ++before) {
            for (after = 1; after <= side; ++after) {
                pl__axis axis;
                int32_t i;
                if (before == after) {
                    continue;
                }
                pl__plan_axis(&axis, before, after, 0, after, (pl_filter)filter);
                for (i = 0; i < after; ++i) {
                    int32_t head[2];
                    head[1] = pl__weights(&axis, i, &head[0], exact, fixed);
                    if (fwrite(head, sizeof *head, 2, stdout) != 2 ||
                        fwrite(fixed, sizeof *fixed, (size_t)head[1], stdout) != (size_t)head[1]) {
                        return 2;
                    }
                }
            }
        }
    }
    free(fixed);
    free(exact);
    /* The rest of the header has to be used for -Wall to be content. */
    return pl_preprocess(NULL, NULL, NULL, 0, NULL) == PL_ERROR_ARGUMENT ? 0 : 1;
}
