import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Paths;

/**
 * From a picture and a detector's box to what a gray artefact takes: fer_edge/image.py and Pillow 13, to the bit. Nothing of
 * Android is needed. tests/test_java.py compiles it and compares it with Python.
 *
 * <p>java FaceCrop RGBFILE WIDTH HEIGHT X Y W H SCALE SIDE > crop
 */
public final class FaceCrop {
    private static final int PRECISION_BITS = 32 - 8 - 2;

    private FaceCrop() {}

    /** Pixels of 0xRRGGBB, as Bitmap.getPixels gives them (its alpha is ignored), as gray: ITU-R 601-2, as Pillow's L. */
    public static byte[] gray(int[] pixels) {
        byte[] gray = new byte[pixels.length];
        for (int i = 0; i < pixels.length; i++) {
            int red = pixels[i] >> 16 & 255, green = pixels[i] >> 8 & 255, blue = pixels[i] & 255;
            gray[i] = (byte) (red * 19595 + green * 38470 + blue * 7471 + 0x8000 >> 16);
        }
        return gray;
    }

    /**
     * A square round the box's centre, its side {@code scale} times the box's longer side (manifest: input.crop.scale), edge
     * pixels repeated where it leaves the picture, stretched to {@code side} x {@code side}.
     *
     * @throws IllegalArgumentException for a box without area, or one that lies outside the picture
     */
    public static byte[] crop(
            byte[] gray, int width, int height, double x, double y, double w, double h, double scale, int side) {
        boolean inside = x + w > 0 && y + h > 0 && x < width && y < height;
        if (!(w > 0 && h > 0 && Math.rint(x + w) > Math.rint(x) && Math.rint(y + h) > Math.rint(y) && inside)) {
            throw new IllegalArgumentException("the box has no area, or lies outside the picture");
        }
        double whole = Math.max(1, Math.rint(Math.max(w, h) * scale));
        if (!(whole <= 4000)) {
            throw new IllegalArgumentException("the box is larger than 4000 pixels");
        }
        int part = (int) whole;
        long left = (long) Math.rint(x + w / 2 - whole / 2), top = (long) Math.rint(y + h / 2 - whole / 2);
        if (left >= width || top >= height || left + part <= 0 || top + part <= 0) {
            throw new IllegalArgumentException("the square in the box lies outside the picture");
        }
        byte[] square = new byte[part * part];
        for (int row = 0; row < part; row++) {
            int from = (int) Math.min(Math.max(top + row, 0), height - 1) * width;
            for (int column = 0; column < part; column++) {
                square[row * part + column] = gray[from + (int) Math.min(Math.max(left + column, 0), width - 1)];
            }
        }
        return part == side ? square : turned(narrowed(turned(narrowed(square, part, side), part, side), part, side), side, side);
    }

    /** Each row of a picture made {@code to} wide: Pillow's bilinear filter, antialiased (src/libImaging/Resample.c). */
    private static byte[] narrowed(byte[] pixels, int from, int to) {
        int rows = pixels.length / from;
        byte[] result = new byte[rows * to];
        double scale = (double) from / to, widening = Math.max(scale, 1.0);
        for (int i = 0; i < to; i++) {
            double centre = (i + 0.5) * scale, sum = 0;
            int first = Math.max(0, (int) (centre - widening + 0.5)), end = Math.min(from, (int) (centre + widening + 0.5));
            double[] exact = new double[end - first];
            for (int k = 0; k < exact.length; k++) {
                exact[k] = Math.max(0, 1 - Math.abs((k + first - centre + 0.5) * (1.0 / widening)));
                sum += exact[k];
            }
            for (int row = 0; row < rows; row++) {
                int total = 1 << PRECISION_BITS - 1;
                for (int k = 0; k < exact.length; k++) {
                    total += (pixels[row * from + first + k] & 255) * (int) (0.5 + exact[k] / sum * (1 << PRECISION_BITS));
                }
                result[row * to + i] = (byte) Math.min(255, total >> PRECISION_BITS);
            }
        }
        return result;
    }

    /** Rows become columns. {@code pixels}: {@code high} rows of {@code wide} numbers. */
    private static byte[] turned(byte[] pixels, int high, int wide) {
        byte[] result = new byte[pixels.length];
        for (int row = 0; row < high; row++) {
            for (int column = 0; column < wide; column++) {
                result[column * high + row] = pixels[row * wide + column];
            }
        }
        return result;
    }

    /** For the tests: pixels of three bytes from a file, the crop to standard output. */
    public static void main(String[] arguments) throws IOException {
        byte[] rgb = Files.readAllBytes(Paths.get(arguments[0]));
        double[] n = new double[arguments.length];
        for (int i = 1; i < n.length; i++) {
            n[i] = Double.parseDouble(arguments[i]);
        }
        int[] pixels = new int[rgb.length / 3];
        for (int i = 0; i < pixels.length; i++) {
            pixels[i] = (rgb[3 * i] & 255) << 16 | (rgb[3 * i + 1] & 255) << 8 | rgb[3 * i + 2] & 255;
        }
        System.out.write(crop(gray(pixels), (int) n[1], (int) n[2], n[3], n[4], n[5], n[6], n[7], (int) n[8]));
        System.out.flush();
    }
}
