/*
 * pocketlens.core._preprocess: the device kit's preprocessing as an extension module of CPython (stable ABI, 3.11 and
 * later). core/compiled.py is its only caller and checks what it hands over; what would touch memory is checked here
 * once more.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define POCKETLENS_PREPROCESS_IMPLEMENTATION
#include "pocketlens_preprocess.h"

/* https://arrow.apache.org/docs/format/CDataInterface.html */
struct ArrowArray {
    int64_t length;
    int64_t null_count;
    int64_t offset;
    int64_t n_buffers;
    int64_t n_children;
    const void **buffers;
    struct ArrowArray **children;
    struct ArrowArray *dictionary;
    void (*release)(struct ArrowArray *);
    void *private_data;
};

/* Returns the first of `pixels` pixels of four bytes in an array of Arrow, or NULL with an exception set. */
static const uint8_t *four_byte_pixels(PyObject *capsule, int64_t pixels) {
    const struct ArrowArray *array = (const struct ArrowArray *)PyCapsule_GetPointer(capsule, "arrow_array");
    const struct ArrowArray *bytes;
    if (array == NULL) {
        return NULL;
    }
    bytes = array->n_children == 1 ? array->children[0] : NULL;
    if (array->release == NULL || array->offset != 0 || array->length != pixels || bytes == NULL ||
        bytes->n_buffers != 2 || bytes->buffers[1] == NULL || bytes->offset != 0 || bytes->length != 4 * pixels) {
        PyErr_SetString(PyExc_ValueError, "expected an array of four bytes for each pixel");
        return NULL;
    }
    return (const uint8_t *)bytes->buffers[1];
}

/* Runs without the interpreter's lock; the status, or -1 without memory. */
static int run(const pl_picture *picture, const pl_spec *spec, uint8_t *out) {
    const size_t bytes = pl_preprocess_workspace(picture, spec);
    void *workspace;
    pl_status status;
    if (bytes == 0) {
        return (int)pl_check_picture(picture, spec);
    }
    workspace = PyMem_Malloc(bytes);
    if (workspace == NULL) {
        return -1;
    }
    Py_BEGIN_ALLOW_THREADS
    status = pl_preprocess(picture, spec, workspace, bytes, out);
    Py_END_ALLOW_THREADS
    PyMem_Free(workspace);
    return (int)status;
}

PyDoc_STRVAR(fit_doc,
             "fit(pixels, height, width, rows, columns, fit, filter, pad_colour, out)\n--\n\n"
             "Place and resize. `pixels` is a buffer of height * width * 3 bytes, or a capsule that holds an array of\n"
             "Arrow with four bytes for each pixel, of which three are read; `out` takes rows * columns * 3.");

static PyObject *fit(PyObject *module, PyObject *arguments) {
    PyObject *source;
    PyObject *result = NULL;
    Py_buffer given = {0};
    Py_buffer out;
    int height, width, rows, columns, way, filter, status;
    unsigned char pad[3];
    pl_picture picture;
    pl_spec spec;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "Oiiiiii(bbb)w*:fit", &source, &height, &width, &rows, &columns, &way, &filter,
                          &pad[0], &pad[1], &pad[2], &out)) {
        return NULL;
    }
    if (height < 1 || width < 1 || rows < 1 || columns < 1 || out.len != (Py_ssize_t)3 * rows * columns) {
        PyErr_SetString(PyExc_ValueError, "expected sides of at least 1 and a result of rows * columns * 3 bytes");
        goto done;
    }
    if (PyCapsule_CheckExact(source)) {
        picture.pixels = four_byte_pixels(source, (int64_t)height * width);
        picture.format = PL_RGBX;
    } else if (PyObject_GetBuffer(source, &given, PyBUF_SIMPLE) == 0) {
        picture.pixels = given.len == (Py_ssize_t)3 * height * width ? (const uint8_t *)given.buf : NULL;
        picture.format = PL_RGB;
        if (picture.pixels == NULL) {
            PyErr_SetString(PyExc_ValueError, "expected height * width * 3 bytes of pixels");
        }
    } else {
        picture.pixels = NULL;
    }
    if (picture.pixels == NULL) {
        goto done;
    }
    picture.height = height;
    picture.width = width;
    picture.stride = (size_t)width * (picture.format == PL_RGB ? 3u : 4u);
    picture.orientation = 1;
    memset(&spec, 0, sizeof spec);
    spec.height = rows;
    spec.width = columns;
    spec.fit = (pl_fit)way;
    spec.filter = (pl_filter)filter;
    memcpy(spec.pad_colour, pad, sizeof pad);
    spec.max_pixels = PL__MAX_PIXELS;
    spec.max_aspect = PL__MAX_ASPECT;
    status = run(&picture, &spec, (uint8_t *)out.buf);
    if (status == -1) {
        PyErr_NoMemory();
    } else if (status != PL_OK) {
        PyErr_Format(PyExc_ValueError, "pl_preprocess refused the picture with status %d", status);
    } else {
        result = Py_NewRef(Py_None);
    }
done:
    if (given.obj != NULL) {
        PyBuffer_Release(&given);
    }
    PyBuffer_Release(&out);
    return result;
}

static PyMethodDef methods[] = {{"fit", fit, METH_VARARGS, fit_doc}, {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_preprocess", "The device kit's preprocessing, compiled.", 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__preprocess(void) {
    return PyModuleDef_Init(&definition);
}
