/*
 * libFuzzer: any picture, spec and orientation. What must hold is memory safety, no undefined behaviour, that a
 * refusal leaves the output alone, and that a picture that is accepted is written in full.
 *
 * Build: clang -std=c99 -O1 -g -fsanitize=fuzzer,address,undefined -I export/device_kit/c \
 *            tests/device_kit/fuzz_preprocess.c -o fuzz_preprocess
 * Use:   fuzz_preprocess -max_total_time=60
 */
#define POCKETLENS_PREPROCESS_IMPLEMENTATION
#include "pocketlens_preprocess.h"

#include <stdlib.h>

#define MOST_BYTES ((size_t)1 << 19)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t first_byte_read(const uint8_t **data, size_t *size) {
    if (*size == 0) {
        return 0;
    }
    --*size;
    return *(*data)++;
}

static int32_t number(const uint8_t **data, size_t *size) {
    const int32_t high = first_byte_read(data, size);
    return high << 8 | first_byte_read(data, size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    pl_picture picture;
    pl_spec spec;
    const uint8_t kind = first_byte_read(&data, &size);
    const uint8_t turn = first_byte_read(&data, &size);
    const size_t pixel = (kind & 3) == PL_RGB ? 3u : 4u;
    size_t bytes;
    size_t need;
    size_t out_bytes;
    size_t i;
    uint8_t *pixels;
    uint8_t *workspace;
    uint8_t *first;
    uint8_t *second;
    pl_status status;
    picture.format = (pl_format)(kind & 3);
    picture.orientation = (turn & 15) - 1;
    /* Mostly small; one in sixteen as long as a number can say. */
    picture.width = number(&data, &size) >> ((turn >> 4) == 15 ? 0 : 8);
    picture.height = number(&data, &size) >> ((turn >> 4) == 14 ? 0 : 8);
    picture.stride = (size_t)picture.width * pixel + (kind >> 6);
    spec.fit = (pl_fit)((kind >> 2 & 3) % 3);
    spec.filter = (pl_filter)(kind >> 4 & 1);
    spec.height = number(&data, &size) >> 9;
    spec.width = number(&data, &size) >> 9;
    spec.max_pixels = 1 << (first_byte_read(&data, &size) & 27);
    spec.max_aspect = 1 + number(&data, &size);
    for (i = 0; i < 3; ++i) {
        spec.matte[i] = first_byte_read(&data, &size);
        spec.pad_colour[i] = first_byte_read(&data, &size);
    }
    bytes = picture.stride * (size_t)picture.height;
    if (bytes > MOST_BYTES) {
        return 0;
    }
    pixels = (uint8_t *)malloc(bytes != 0 ? bytes : 1u);
    for (i = 0; i < bytes; ++i) {
        pixels[i] = size != 0 ? data[i % size] : (uint8_t)i;
    }
    picture.pixels = pixels;
    need = pl_preprocess_workspace(&picture, &spec);
    if (need > MOST_BYTES * 64) {
        abort(); /* far beyond the stated bound for so few pixels */
    }
    out_bytes = (size_t)spec.height * (size_t)spec.width * 3u;
    workspace = (uint8_t *)malloc(need + 1);
    first = (uint8_t *)malloc(out_bytes + 1);
    second = (uint8_t *)malloc(out_bytes + 1);
    memset(workspace, 0x5A, need + 1);
    memset(first, 0x00, out_bytes + 1);
    memset(second, 0xFF, out_bytes + 1);
    status = pl_preprocess(&picture, &spec, workspace + (kind >> 5 & 1), need, first);
    if ((status == PL_OK) != (need != 0)) {
        abort();
    }
    if (status == PL_OK) {
        memset(workspace, 0xC3, need + 1);
        /* Whatever was in memory before, every byte is written and none depends on it. */
        if (pl_preprocess(&picture, &spec, workspace + (kind >> 5 & 1), need, second) != PL_OK ||
            memcmp(first, second, out_bytes) != 0) {
            abort();
        }
    } else {
        for (i = 0; i < out_bytes; ++i) {
            if (first[i] != 0) {
                abort();
            }
        }
    }
    free(second);
    free(first);
    free(workspace);
    free(pixels);
    return 0;
}
