/* The one source file that compiles the device kit: add it to the app's target. */
#define POCKETLENS_PREPROCESS_IMPLEMENTATION
#include "pocketlens_preprocess.h"
#define POCKETLENS_TOKENIZER_IMPLEMENTATION
#include "pocketlens_tokenizer.h"
