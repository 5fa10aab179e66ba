/*
 * libFuzzer: any text with a sound tokenizer.bin, or any tokenizer.bin with some text; the first byte says which.
 * What must hold is memory safety, no undefined behaviour, that the stated workspace suffices, that a row agrees
 * with the ids, and that decoding gives well-formed UTF-8.
 *
 * Build: clang -std=c99 -O1 -g -fsanitize=fuzzer,address,undefined -I export/device_kit/c \
 *            tests/device_kit/fuzz_tokenizer.c -o fuzz_tokenizer
 * Use:   POCKETLENS_TOKENIZER_BIN=bundle/device_kit/tokenizer.bin fuzz_tokenizer -max_total_time=60 CORPUS
 */
#define POCKETLENS_TOKENIZER_IMPLEMENTATION
#include "pocketlens_tokenizer.h"

#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t *sound;
static size_t sound_bytes;

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    const char *path = getenv("POCKETLENS_TOKENIZER_BIN");
    FILE *file = path != NULL ? fopen(path, "rb") : NULL;
    (void)argc;
    (void)argv;
    if (file == NULL) {
        fprintf(stderr, "POCKETLENS_TOKENIZER_BIN must name a tokenizer.bin\n");
        exit(2);
    }
    sound = (uint8_t *)malloc((size_t)1 << 24);
    sound_bytes = fread(sound, 1, (size_t)1 << 24, file);
    fclose(file);
    return 0;
}

/* `is_sound`: the file is one that pocketlens writes, for which the stated workspace suffices. */
static void check_text(const pl_tokenizer *tokenizer, const uint8_t *data, size_t size, int is_sound) {
    const size_t need = pl_tokenizer_workspace(tokenizer, size);
    uint8_t *workspace = (uint8_t *)malloc(need + 1);
    int32_t *ids = (int32_t *)malloc((size * 3u + 32u) * sizeof *ids);
    int32_t *row = (int32_t *)malloc((size_t)tokenizer->text_length * sizeof *row);
    char *copy = (char *)malloc(size != 0 ? size : 1u);
    size_t count = 0;
    pl_status status;
    memcpy(copy, data, size);
    status = pl_tokenizer_encode(tokenizer, copy, size, workspace + 1, need, ids, size * 3u + 32u, &count);
    if (status == PL_OK) {
        const size_t kept = (size_t)tokenizer->text_length - 2u;
        size_t length = 0;
        char *text;
        size_t at = 0;
        if (pl_tokenizer_encode_row(tokenizer, copy, size, workspace + 1, need, row) != PL_OK ||
            memcmp(row + 1, ids, (count < kept ? count : kept) * sizeof *ids) != 0) {
            abort();
        }
        (void)pl_tokenizer_decode(tokenizer, ids, count, NULL, 0, &length);
        text = (char *)malloc(length != 0 ? length : 1u);
        if (pl_tokenizer_decode(tokenizer, ids, count, text, length, &length) != PL_OK) {
            abort();
        }
        while (at < length) {
            uint32_t code;
            const size_t bytes = pl__decode_utf8((const uint8_t *)text + at, length - at, &code);
            if (bytes == 0) {
                abort();
            }
            at += bytes;
        }
        free(text);
    } else if (status != PL_ERROR_UTF8 && (is_sound || status != PL_ERROR_WORKSPACE)) {
        abort();
    }
    free(copy);
    free(row);
    free(ids);
    free(workspace);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const uint8_t text[] = "a cat's <pad> \xC3\x89\xCC\x81 <eos>";
    pl_tokenizer tokenizer;
    const int kind = size != 0 ? data[0] % 3 : 0;
    data += size != 0;
    size -= size != 0;
    if (kind == 0) { /* any text, the sound file */
        if (pl_tokenizer_open(&tokenizer, sound, sound_bytes) != PL_OK) {
            abort();
        }
        check_text(&tokenizer, data, size, 1);
    } else if (kind == 1) { /* any file */
        uint8_t *copy = (uint8_t *)malloc(size != 0 ? size : 1u);
        memcpy(copy, data, size);
        if (pl_tokenizer_open(&tokenizer, copy, size) == PL_OK) {
            check_text(&tokenizer, text, sizeof text - 1u, 0);
        }
        free(copy);
    } else { /* the sound file with bytes changed: offset (3 bytes), new byte */
        uint8_t *copy = (uint8_t *)malloc(sound_bytes);
        size_t at;
        memcpy(copy, sound, sound_bytes);
        for (at = 0; at + 4 <= size; at += 4) {
            const size_t offset = (size_t)data[at] << 16 | (size_t)data[at + 1] << 8 | data[at + 2];
            copy[offset % sound_bytes] = data[at + 3];
        }
        if (pl_tokenizer_open(&tokenizer, copy, sound_bytes) == PL_OK && tokenizer.text_length < 4096) {
            check_text(&tokenizer, text, sizeof text - 1u, 0);
        }
        free(copy);
    }
    return 0;
}
