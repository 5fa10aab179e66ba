/* JNI glue of the device kit: the native side of PocketLensKit.kt. Direct buffers, no copy of the picture. */
#include <jni.h>
#include <stdlib.h>

#include "../pocketlens_config.h"
#include "../pocketlens_preprocess.h"
#include "../pocketlens_tokenizer.h"

#define PL_JNI(name) Java_org_pocketlens_PocketLensKit_##name

JNIEXPORT jint JNICALL PL_JNI(preprocess)(JNIEnv *env, jclass self, jobject pixels, jint width, jint height,
                                          jint stride, jint format, jint orientation, jobject out);
JNIEXPORT jint JNICALL PL_JNI(encode)(JNIEnv *env, jclass self, jobject tokenizer, jbyteArray text, jintArray row);
JNIEXPORT jbyteArray JNICALL PL_JNI(decode)(JNIEnv *env, jclass self, jobject tokenizer, jintArray ids);

JNIEXPORT jint JNICALL PL_JNI(preprocess)(JNIEnv *env, jclass self, jobject pixels, jint width, jint height,
                                          jint stride, jint format, jint orientation, jobject out) {
    const pl_spec spec = PL_CONFIG_SPEC;
    uint8_t *target = (uint8_t *)(*env)->GetDirectBufferAddress(env, out);
    const jlong given = (*env)->GetDirectBufferCapacity(env, pixels);
    pl_picture picture;
    pl_status status;
    size_t bytes;
    void *workspace;
    (void)self;
    picture.pixels = (const uint8_t *)(*env)->GetDirectBufferAddress(env, pixels);
    picture.width = width;
    picture.height = height;
    picture.stride = stride > 0 ? (size_t)stride : 0;
    picture.format = (pl_format)format;
    picture.orientation = orientation;
    status = pl_check_picture(&picture, &spec);
    if (status != PL_OK) {
        return status;
    }
    if (given / stride < height || (*env)->GetDirectBufferCapacity(env, out) < (jlong)PL_CONFIG_PIXEL_BYTES) {
        return PL_ERROR_ARGUMENT;
    }
    bytes = pl_preprocess_workspace(&picture, &spec);
    workspace = malloc(bytes);
    if (workspace == NULL) {
        return PL_ERROR_WORKSPACE;
    }
    status = pl_preprocess(&picture, &spec, workspace, bytes, target);
    free(workspace);
    return status;
}

static pl_status open_tokenizer(JNIEnv *env, jobject buffer, pl_tokenizer *tokenizer) {
    const jlong size = (*env)->GetDirectBufferCapacity(env, buffer);
    return pl_tokenizer_open(tokenizer, (*env)->GetDirectBufferAddress(env, buffer), size > 0 ? (size_t)size : 0);
}

JNIEXPORT jint JNICALL PL_JNI(encode)(JNIEnv *env, jclass self, jobject tokenizer, jbyteArray text, jintArray row) {
    pl_tokenizer opened;
    pl_status status = open_tokenizer(env, tokenizer, &opened);
    const jsize bytes = (*env)->GetArrayLength(env, text);
    size_t need;
    void *workspace;
    jbyte *from;
    jint ids[PL_CONFIG_TEXT_LENGTH];
    (void)self;
    if (status != PL_OK) {
        return status;
    }
    if (opened.text_length != PL_CONFIG_TEXT_LENGTH || (*env)->GetArrayLength(env, row) != PL_CONFIG_TEXT_LENGTH) {
        return PL_ERROR_ARGUMENT;
    }
    need = pl_tokenizer_workspace(&opened, (size_t)bytes);
    workspace = need != 0 ? malloc(need) : NULL;
    from = workspace != NULL ? (*env)->GetByteArrayElements(env, text, NULL) : NULL;
    if (from == NULL) {
        free(workspace);
        return PL_ERROR_WORKSPACE;
    }
    status = pl_tokenizer_encode_row(&opened, (const char *)from, (size_t)bytes, workspace, need, ids);
    (*env)->ReleaseByteArrayElements(env, text, from, JNI_ABORT);
    free(workspace);
    if (status == PL_OK) {
        (*env)->SetIntArrayRegion(env, row, 0, PL_CONFIG_TEXT_LENGTH, ids);
    }
    return status;
}

/* Returns the UTF-8 of the ids, or null when tokenizer.bin is refused or memory is short. */
JNIEXPORT jbyteArray JNICALL PL_JNI(decode)(JNIEnv *env, jclass self, jobject tokenizer, jintArray ids) {
    pl_tokenizer opened;
    const jsize count = (*env)->GetArrayLength(env, ids);
    jint *from;
    size_t bytes = 0;
    char *text = NULL;
    jbyteArray result = NULL;
    (void)self;
    if (open_tokenizer(env, tokenizer, &opened) != PL_OK) {
        return NULL;
    }
    from = (*env)->GetIntArrayElements(env, ids, NULL);
    if (from == NULL) {
        return NULL;
    }
    (void)pl_tokenizer_decode(&opened, from, (size_t)count, NULL, 0, &bytes);
    text = (char *)malloc(bytes + 1u);
    if (text != NULL && pl_tokenizer_decode(&opened, from, (size_t)count, text, bytes, &bytes) == PL_OK) {
        result = (*env)->NewByteArray(env, (jsize)bytes);
        if (result != NULL) {
            (*env)->SetByteArrayRegion(env, result, 0, (jsize)bytes, (const jbyte *)text);
        }
    }
    free(text);
    (*env)->ReleaseIntArrayElements(env, ids, from, JNI_ABORT);
    return result;
}
