import CPocketLensKit
import CoreGraphics
import Foundation
import ImageIO

/// Pictures and text to what a pocketlens graph takes, with the bits of the training code.
///
/// Add pocketlens_kit.c to the target, put this folder on the import paths (SWIFT_INCLUDE_PATHS), and ship
/// tokenizer.bin as a resource.
///
///     let kit = try PocketLensKit(tokenizer: Data(contentsOf: tokenizerURL))
///     let pixels = try kit.pixels(of: pictureURL)     // uint8 (height, width, 3)
///     let ids = try kit.ids(of: "a cat on a sofa")    // int32 (textLength)
public final class PocketLensKit {
    /// A status of the C headers other than PL_OK, or a picture that ImageIO cannot read.
    public enum Failure: Error {
        case status(UInt32)
        case unreadable
    }

    public static let height = Int(PL_CONFIG_HEIGHT)
    public static let width = Int(PL_CONFIG_WIDTH)
    public static let textLength = Int(PL_CONFIG_TEXT_LENGTH)

    // The C struct points into these bytes: they are allocated once and stay where they are.
    private let bytes: UnsafeMutableRawBufferPointer
    private var tokenizer = pl_tokenizer()

    public init(tokenizer data: Data) throws {
        bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: max(data.count, 1), alignment: 16)
        data.copyBytes(to: bytes)
        do {
            try check(pl_tokenizer_open(&tokenizer, bytes.baseAddress, data.count))
        } catch {
            bytes.deallocate()
            throw error
        }
    }

    deinit {
        bytes.deallocate()
    }

    /// The pixels of a picture file: uint8 (height, width, 3), RGB.
    public func pixels(of url: URL) throws -> [UInt8] {
        guard let source = CGImageSourceCreateWithURL(url as CFURL, nil),
            let image = CGImageSourceCreateImageAtIndex(source, 0, nil),
            let space = CGColorSpace(name: CGColorSpace.sRGB)
        else { throw Failure.unreadable }
        // ImageIO hands the picture out as it is stored, and the orientation beside it.
        let properties = CGImageSourceCopyPropertiesAtIndex(source, 0, nil) as? [CFString: Any]
        let orientation = (properties?[kCGImagePropertyOrientation] as? NSNumber)?.int32Value ?? 1
        let opaque = [.none, .noneSkipFirst, .noneSkipLast].contains(image.alphaInfo)
        // Bitmap contexts know no straight alpha; the C side divides by alpha again.
        let alpha: CGImageAlphaInfo = opaque ? .noneSkipLast : .premultipliedLast
        let format = opaque ? PL_RGBX : PL_RGBA_PREMULTIPLIED
        let stride = image.width * 4
        var rgba = [UInt8](repeating: 0, count: stride * image.height)
        let drawn = rgba.withUnsafeMutableBytes { buffer -> Bool in
            guard
                let context = CGContext(
                    data: buffer.baseAddress, width: image.width, height: image.height, bitsPerComponent: 8,
                    bytesPerRow: stride, space: space,
                    bitmapInfo: alpha.rawValue | CGBitmapInfo.byteOrder32Big.rawValue)
            else { return false }
            context.interpolationQuality = .none
            context.setBlendMode(.copy)
            context.draw(image, in: CGRect(x: 0, y: 0, width: image.width, height: image.height))
            return true
        }
        guard drawn else { throw Failure.unreadable }
        return try rgba.withUnsafeBufferPointer { buffer in
            try pixels(
                of: pl_picture(
                    pixels: buffer.baseAddress, width: Int32(image.width), height: Int32(image.height),
                    stride: stride, format: format, orientation: orientation))
        }
    }

    /// The pixels of a decoded picture.
    public func pixels(of picture: pl_picture) throws -> [UInt8] {
        var picture = picture
        var spec = PocketLensKit.spec
        try check(pl_check_picture(&picture, &spec))
        let size = pl_preprocess_workspace(&picture, &spec)
        let workspace = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: 16)
        defer { workspace.deallocate() }
        var out = [UInt8](repeating: 0, count: PocketLensKit.height * PocketLensKit.width * 3)
        try check(pl_preprocess(&picture, &spec, workspace, size, &out))
        return out
    }

    /// The row for the text encoder.
    public func ids(of text: String) throws -> [Int32] {
        let utf8 = Array(text.utf8)
        let size = pl_tokenizer_workspace(&tokenizer, utf8.count)
        let workspace = UnsafeMutableRawPointer.allocate(byteCount: max(size, 1), alignment: 16)
        defer { workspace.deallocate() }
        var row = [Int32](repeating: 0, count: PocketLensKit.textLength)
        guard Int(tokenizer.text_length) == row.count else { throw Failure.status(PL_ERROR_FILE.rawValue) }
        try utf8.withUnsafeBytes { buffer in
            let text = buffer.bindMemory(to: CChar.self).baseAddress
            try check(pl_tokenizer_encode_row(&tokenizer, text, utf8.count, workspace, size, &row))
        }
        return row
    }

    /// The text of caption ids.
    public func text(of ids: [Int32]) throws -> String {
        var size = 0
        _ = pl_tokenizer_decode(&tokenizer, ids, ids.count, nil, 0, &size)
        var text = [UInt8](repeating: 0, count: max(size, 1))
        try text.withUnsafeMutableBytes { buffer in
            let out = buffer.bindMemory(to: CChar.self).baseAddress
            try check(pl_tokenizer_decode(&tokenizer, ids, ids.count, out, size, &size))
        }
        return String(decoding: text[..<size], as: UTF8.self)
    }

    // Swift does not import the initialiser macro PL_CONFIG_SPEC; this function of the header returns the same.
    private static let spec = pl_config_spec()
}

private func check(_ status: pl_status) throws {
    if status != PL_OK { throw PocketLensKit.Failure.status(status.rawValue) }
}
