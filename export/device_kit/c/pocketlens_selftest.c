/*
 * Does this build of the device kit give the bits that pocketlens gave when the bundle was exported?
 *
 *     cc -std=c99 -O2 pocketlens_selftest.c -o selftest && ./selftest tokenizer.bin
 *
 * Prints one line a failure and the totals; exit status 0 when all is equal. On a phone, compile it into a test
 * target and call pl_selftest with the bytes of tokenizer.bin: define POCKETLENS_SELFTEST_NO_MAIN for that, and
 * link pocketlens_kit.c instead of defining the implementations here.
 */
#ifndef POCKETLENS_SELFTEST_NO_MAIN
#define POCKETLENS_PREPROCESS_IMPLEMENTATION
#define POCKETLENS_TOKENIZER_IMPLEMENTATION
#endif
#include "pocketlens_preprocess.h"
#include "pocketlens_tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pocketlens_config.h"
#include "pocketlens_golden.h"

int pl_selftest(const uint8_t *tokenizer_bin, size_t bytes);

static uint8_t noise(uint32_t index, uint32_t seed) {
    uint32_t value = (index + seed) * 2654435761u;
    value ^= value >> 15;
    value *= 2246822519u;
    return (uint8_t)(value >> 24);
}

static uint32_t crc32(const uint8_t *data, size_t bytes) {
    uint32_t crc = 0xFFFFFFFFu;
    size_t i;
    int bit;
    for (i = 0; i < bytes; ++i) {
        crc ^= data[i];
        for (bit = 0; bit < 8; ++bit) {
            crc = crc >> 1 ^ (0xEDB88320u & (0u - (crc & 1u)));
        }
    }
    return ~crc;
}

/* Returns 1 when the picture comes out as expected, 0 when it does not, -1 without memory. */
static int check_picture(const pl_golden_picture *golden) {
    const pl_spec spec = PL_CONFIG_SPEC;
    const size_t stride = (size_t)golden->width * (golden->format == PL_RGB ? 3u : 4u);
    const size_t size = stride * (size_t)golden->height;
    uint8_t *pixels = (uint8_t *)malloc(size);
    uint8_t *out = (uint8_t *)malloc(PL_CONFIG_PIXEL_BYTES);
    void *workspace = NULL;
    int result = -1;
    if (pixels != NULL && out != NULL) {
        pl_picture picture;
        size_t need;
        size_t i;
        for (i = 0; i < size; ++i) {
            pixels[i] = noise((uint32_t)i, golden->seed);
        }
        picture.pixels = pixels;
        picture.width = golden->width;
        picture.height = golden->height;
        picture.stride = stride;
        picture.format = (pl_format)golden->format;
        picture.orientation = golden->orientation;
        need = pl_preprocess_workspace(&picture, &spec);
        workspace = malloc(need != 0 ? need : 1u);
        if (workspace != NULL) {
            result = pl_preprocess(&picture, &spec, workspace, need, out) == PL_OK &&
                     crc32(out, PL_CONFIG_PIXEL_BYTES) == golden->crc;
        }
    }
    free(workspace);
    free(out);
    free(pixels);
    return result;
}

static int check_text(const pl_tokenizer *tokenizer, size_t index) {
    const size_t from = index == 0 ? 0 : pl_golden_ends[index - 1];
    const size_t bytes = pl_golden_ends[index] - from;
    const size_t need = pl_tokenizer_workspace(tokenizer, bytes);
    void *workspace = malloc(need);
    int32_t row[PL_CONFIG_TEXT_LENGTH];
    int result = -1;
    if (workspace != NULL) {
        const char *text = (const char *)pl_golden_bytes + from;
        result = pl_tokenizer_encode_row(tokenizer, text, bytes, workspace, need, row) == PL_OK &&
                 memcmp(row, pl_golden_rows + index * PL_CONFIG_TEXT_LENGTH, sizeof row) == 0;
    }
    free(workspace);
    return result;
}

/* Returns the number of pictures and texts that differ from pocketlens's; prints what. */
int pl_selftest(const uint8_t *tokenizer_bin, size_t bytes) {
    pl_tokenizer tokenizer;
    int failures = 0;
    size_t i;
    for (i = 0; i < PL_GOLDEN_PICTURES; ++i) {
        const pl_golden_picture *golden = &pl_golden_pictures[i];
        if (check_picture(golden) != 1) {
            printf("picture %d x %d, format %d, orientation %d: differs\n", (int)golden->width, (int)golden->height,
                   (int)golden->format, (int)golden->orientation);
            ++failures;
        }
    }
    if (pl_tokenizer_open(&tokenizer, tokenizer_bin, bytes) != PL_OK ||
        tokenizer.text_length != PL_CONFIG_TEXT_LENGTH) {
        printf("tokenizer.bin: refused, or of another bundle\n");
        return failures + PL_GOLDEN_TEXTS;
    }
    for (i = 0; i < PL_GOLDEN_TEXTS; ++i) {
        if (check_text(&tokenizer, i) != 1) {
            printf("text %d: differs\n", (int)i);
            ++failures;
        }
    }
    printf("%s %s: %d pictures and %d texts, %d differ\n", PL_CONFIG_NAME, PL_CONFIG_MODEL_VERSION, PL_GOLDEN_PICTURES,
           PL_GOLDEN_TEXTS, failures);
    return failures;
}

#ifndef POCKETLENS_SELFTEST_NO_MAIN
int main(int argc, char **argv) {
    FILE *file = argc == 2 ? fopen(argv[1], "rb") : NULL;
    uint8_t *data = NULL;
    size_t size = 0;
    int failures;
    if (file == NULL) {
        fprintf(stderr, "use: selftest tokenizer.bin\n");
        return 2;
    }
    for (;;) {
        uint8_t *more = (uint8_t *)realloc(data, size + 65536u);
        size_t got;
        if (more == NULL) {
            free(data);
            fclose(file);
            return 2;
        }
        data = more;
        got = fread(data + size, 1, 65536u, file);
        size += got;
        if (got < 65536u) {
            break;
        }
    }
    fclose(file);
    failures = pl_selftest(data, size);
    free(data);
    return failures == 0 ? 0 : 1;
}
#endif
