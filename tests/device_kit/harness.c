/*
 * Runs the device kit on cases from a file and writes what came out: the other side of the tests in tests/export.
 *
 * Build: cc -std=c99 -I core/c tests/device_kit/harness.c -o harness
 * Use:   harness pictures CASES RESULTS
 *        harness texts TOKENIZER_BIN CASES RESULTS
 *        harness decode TOKENIZER_BIN CASES RESULTS
 *
 * CASES: all numbers int32 in this machine's order.
 *   pictures  per case: width, height, stride, format, orientation, then height, width, fit, filter, matte (3),
 *             pad colour (3), max_pixels, max_aspect of the spec, then stride * height bytes.
 *             Result: status, and height * width * 3 bytes if it is 0.
 *   texts     per case: length in bytes, then the bytes.
 *             Result: status, count, count ids, then text_length ids of the row (if status is 0).
 *   decode    per case: count, then the ids.
 *             Result: status, length in bytes, then the bytes.
 *
 * Every buffer is allocated with the exact size that the header states, and the workspace at an odd address, so
 * that AddressSanitizer sees one byte too many.
 */
#define POCKETLENS_PREPROCESS_IMPLEMENTATION
#include "pocketlens_preprocess.h"
#define POCKETLENS_TOKENIZER_IMPLEMENTATION
#include "pocketlens_tokenizer.h"

#include <stdio.h>
#include <stdlib.h>

static void fail(const char *why) {
    fprintf(stderr, "harness: %s\n", why);
    exit(2);
}

static void *allocate(size_t bytes) {
    void *memory = malloc(bytes != 0 ? bytes : 1);
    if (memory == NULL) {
        fail("out of memory");
    }
    return memory;
}

static uint8_t *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    uint8_t *data;
    long length = -1;
    if (file == NULL || fseek(file, 0, SEEK_END) != 0 || (length = ftell(file)) < 0) {
        fail(path);
    }
    rewind(file);
    *size = (size_t)length;
    data = (uint8_t *)allocate(*size);
    if (fread(data, 1, *size, file) != *size) {
        fail(path);
    }
    fclose(file);
    return data;
}

static int read_numbers(FILE *file, int32_t *numbers, size_t count) {
    return fread(numbers, sizeof *numbers, count, file) == count;
}

static void write_bytes(FILE *file, const void *data, size_t size) {
    if (size != 0 && fwrite(data, 1, size, file) != size) {
        fail("cannot write");
    }
}

static void write_number(FILE *file, size_t number) {
    const int32_t value = (int32_t)number;
    write_bytes(file, &value, sizeof value);
}

static void run_pictures(FILE *cases, FILE *results) {
    int32_t n[17];
    while (read_numbers(cases, n, 17)) {
        const size_t bytes = (size_t)n[2] * (size_t)n[1];
        uint8_t *pixels = (uint8_t *)allocate(bytes);
        pl_picture picture;
        pl_spec spec;
        size_t need;
        size_t size;
        uint8_t *workspace;
        uint8_t *out;
        pl_status status;
        int i;
        if (fread(pixels, 1, bytes, cases) != bytes) {
            fail("a case breaks off");
        }
        picture.pixels = pixels;
        picture.width = n[0];
        picture.height = n[1];
        picture.stride = (size_t)n[2];
        picture.format = (pl_format)n[3];
        picture.orientation = n[4];
        spec.height = n[5];
        spec.width = n[6];
        spec.fit = (pl_fit)n[7];
        spec.filter = (pl_filter)n[8];
        for (i = 0; i < 3; ++i) {
            spec.matte[i] = (uint8_t)n[9 + i];
            spec.pad_colour[i] = (uint8_t)n[12 + i];
        }
        spec.max_pixels = n[15];
        spec.max_aspect = n[16];
        need = pl_preprocess_workspace(&picture, &spec);
        size = (size_t)spec.height * (size_t)spec.width * 3u;
        workspace = (uint8_t *)allocate(need + 1);
        out = (uint8_t *)allocate(size);
        if (need != 0 && pl_preprocess(&picture, &spec, workspace + 1, need - 1, out) != PL_ERROR_WORKSPACE) {
            fail("a workspace that is too small was taken");
        }
        status = pl_preprocess(&picture, &spec, workspace + 1, need, out);
        write_number(results, (size_t)status);
        if (status == PL_OK) {
            write_bytes(results, out, size);
        }
        free(out);
        free(workspace);
        free(pixels);
    }
}

static void run_texts(const pl_tokenizer *tokenizer, FILE *cases, FILE *results) {
    int32_t length;
    int32_t *row = (int32_t *)allocate((size_t)tokenizer->text_length * sizeof *row);
    while (read_numbers(cases, &length, 1)) {
        const size_t bytes = (size_t)length;
        char *text = (char *)allocate(bytes);
        const size_t need = pl_tokenizer_workspace(tokenizer, bytes);
        uint8_t *workspace = (uint8_t *)allocate(need + 1);
        int32_t *ids = NULL;
        size_t count = 0;
        pl_status status;
        if (fread(text, 1, bytes, cases) != bytes) {
            fail("a case breaks off");
        }
        status = pl_tokenizer_encode(tokenizer, text, bytes, workspace + 1, need, NULL, 0, &count);
        if (status == PL_ERROR_CAPACITY) {
            ids = (int32_t *)allocate(count * sizeof *ids);
            status = pl_tokenizer_encode(tokenizer, text, bytes, workspace + 1, need, ids, count, &count);
        }
        write_number(results, (size_t)status);
        if (status == PL_OK) {
            if (pl_tokenizer_encode_row(tokenizer, text, bytes, workspace + 1, need, row) != PL_OK) {
                fail("ids, but no row");
            }
            write_number(results, count);
            write_bytes(results, ids, count * sizeof *ids);
            write_bytes(results, row, (size_t)tokenizer->text_length * sizeof *row);
        }
        free(ids);
        free(workspace);
        free(text);
    }
    free(row);
}

static void run_decode(const pl_tokenizer *tokenizer, FILE *cases, FILE *results) {
    int32_t count;
    while (read_numbers(cases, &count, 1)) {
        int32_t *ids = (int32_t *)allocate((size_t)count * sizeof *ids);
        size_t length = 0;
        char *text;
        pl_status status;
        if (!read_numbers(cases, ids, (size_t)count)) {
            fail("a case breaks off");
        }
        (void)pl_tokenizer_decode(tokenizer, ids, (size_t)count, NULL, 0, &length);
        text = (char *)allocate(length);
        status = pl_tokenizer_decode(tokenizer, ids, (size_t)count, text, length, &length);
        write_number(results, (size_t)status);
        write_number(results, length);
        write_bytes(results, text, length);
        free(text);
        free(ids);
    }
}

int main(int argc, char **argv) {
    const int is_pictures = argc == 4 && strcmp(argv[1], "pictures") == 0;
    FILE *cases;
    FILE *results;
    if (!is_pictures && argc != 5) {
        fail("pictures CASES RESULTS | texts TOKENIZER_BIN CASES RESULTS | decode TOKENIZER_BIN CASES RESULTS");
    }
    cases = fopen(argv[argc - 2], "rb");
    results = fopen(argv[argc - 1], "wb");
    if (cases == NULL || results == NULL) {
        fail("cannot open the files");
    }
    if (is_pictures) {
        run_pictures(cases, results);
    } else {
        pl_tokenizer tokenizer;
        size_t size;
        uint8_t *data = read_file(argv[2], &size);
        if (pl_tokenizer_open(&tokenizer, data, size) != PL_OK) {
            fail("tokenizer.bin was refused");
        }
        if (strcmp(argv[1], "texts") == 0) {
            run_texts(&tokenizer, cases, results);
        } else {
            run_decode(&tokenizer, cases, results);
        }
        free(data);
    }
    fclose(cases);
    if (fclose(results) != 0) {
        fail("cannot write");
    }
    return 0;
}
