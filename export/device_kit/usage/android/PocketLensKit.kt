package org.pocketlens

import android.graphics.Bitmap
import android.graphics.ColorSpace
import android.graphics.ImageDecoder
import java.nio.ByteBuffer
import java.nio.ByteOrder

/**
 * Pictures and text to what a pocketlens graph takes, with the bits of the training code.
 *
 * Build: add android/CMakeLists.txt to the app's externalNativeBuild. Ship tokenizer.bin as an asset.
 *
 *     val kit = PocketLensKit(height = 256, width = 256, textLength = 32, tokenizerBin)
 *     val pixels = kit.pixels(ImageDecoder.createSource(contentResolver, uri))   // uint8 (256, 256, 3)
 *     val ids = kit.ids("a cat on a sofa")                                       // int32 (32)
 *
 * height, width and textLength are PL_CONFIG_HEIGHT, PL_CONFIG_WIDTH and PL_CONFIG_TEXT_LENGTH.
 */
class PocketLensKit(
    private val height: Int,
    private val width: Int,
    private val textLength: Int,
    tokenizerBin: ByteArray,
) {
    private val tokenizer: ByteBuffer = ByteBuffer.allocateDirect(tokenizerBin.size).put(tokenizerBin)

    /** Returns the pixels of a picture file: uint8 (height, width, 3), RGB. API 28 and up. */
    fun pixels(source: ImageDecoder.Source): ByteBuffer {
        val bitmap = ImageDecoder.decodeBitmap(source) { decoder, _, _ ->
            decoder.allocator = ImageDecoder.ALLOCATOR_SOFTWARE // hardware bitmaps cannot be read
            decoder.isUnpremultipliedRequired = true // straight alpha, as it is in the file
            decoder.setTargetColorSpace(ColorSpace.get(ColorSpace.Named.SRGB))
        }
        // Some files decode to RGBA_F16 or RGB_565; the kit takes 8 bits a channel.
        val rgba = if (bitmap.config == Bitmap.Config.ARGB_8888) bitmap else bitmap.copy(Bitmap.Config.ARGB_8888, false)
        val format = if (!rgba.hasAlpha()) RGBX else if (rgba.isPremultiplied) RGBA_PREMULTIPLIED else RGBA
        val pixels = ByteBuffer.allocateDirect(rgba.rowBytes * rgba.height)
        rgba.copyPixelsToBuffer(pixels)
        // ImageDecoder has applied the EXIF orientation. BitmapFactory does not: with it, pass the tag of ExifInterface.
        return pixels(pixels, rgba.width, rgba.height, rgba.rowBytes, format, orientation = 1)
    }

    /** Returns the pixels of a decoded picture in a direct buffer; [format] and [orientation] as in the C header. */
    fun pixels(
        pixels: ByteBuffer, width: Int, height: Int, stride: Int, format: Int, orientation: Int,
    ): ByteBuffer {
        val out = ByteBuffer.allocateDirect(this.height * this.width * 3).order(ByteOrder.nativeOrder())
        val status = preprocess(pixels, width, height, stride, format, orientation, out)
        require(status == 0) { "pl_preprocess refused the picture: status $status" }
        return out
    }

    /** Returns the row for the text encoder. Lone surrogates become "?", as in every Java text that leaves as UTF-8. */
    fun ids(text: String): IntArray {
        val row = IntArray(textLength)
        // Not GetStringUTFChars on the native side: modified UTF-8 is no UTF-8.
        val status = encode(tokenizer, text.toByteArray(Charsets.UTF_8), row)
        require(status == 0) { "pl_tokenizer_encode_row failed: status $status" }
        return row
    }

    /** Returns the text of caption ids. */
    fun text(ids: IntArray): String =
        requireNotNull(decode(tokenizer, ids)) { "tokenizer.bin was refused" }.toString(Charsets.UTF_8)

    companion object {
        const val RGB = 0
        const val RGBA = 1
        const val RGBA_PREMULTIPLIED = 2
        const val RGBX = 3

        init {
            System.loadLibrary("pocketlens_kit")
        }

        @JvmStatic
        private external fun preprocess(
            pixels: ByteBuffer, width: Int, height: Int, stride: Int, format: Int, orientation: Int, out: ByteBuffer,
        ): Int

        @JvmStatic
        private external fun encode(tokenizer: ByteBuffer, text: ByteArray, row: IntArray): Int

        @JvmStatic
        private external fun decode(tokenizer: ByteBuffer, ids: IntArray): ByteArray?
    }
}
