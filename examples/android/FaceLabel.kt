// A bundle's litert artefact on Android, in Kotlin. Not compiled here: no Android SDK, and no Kotlin, in the tests.
//
// Beside this file go FaceCrop.java and FaceLabels.java of examples/java, and into src/main/assets/fer-edge/ a bundle's
// manifest.json and litert-int8.tflite. build.gradle.kts:
//   dependencies { implementation("com.google.ai.edge.litert:litert:1.4.0") }
//   android { androidResources { noCompress += "tflite" } }

import android.content.Context
import android.graphics.Bitmap
import android.graphics.RectF
import java.nio.ByteBuffer
import java.security.MessageDigest
import org.json.JSONArray
import org.json.JSONObject

/** [temperature]: of the default label set, as `fer-edge labels list` shows it on the machine where the bundle was made. */
class FaceLabel(context: Context, temperature: Double, folder: String = "fer-edge") : AutoCloseable {
    private val labels: List<String>
    private val side: Int
    private val scale: Double
    private val engine: FaceLabels

    init {
        val manifest = JSONObject(context.assets.open("$folder/manifest.json").bufferedReader().readText())
        val input = manifest.getJSONObject("input")
        require(input.getString("color") == "gray" && input.getInt("width") == input.getInt("height")) { "a square gray input" }
        side = input.getInt("width")
        scale = input.getJSONObject("crop").getDouble("scale")
        labels = manifest.getJSONArray("label_sets").objects()
            .first { it.getString("name") == manifest.getString("default_labels") }
            .getJSONArray("labels").let { names -> List(names.length()) { names.getString(it) } }
        val file = manifest.getJSONArray("artefacts").objects()
            .first { it.getString("runtime") == "litert" && it.getString("precision") == "int8" && it.isNull("target") }
            .getJSONArray("files").getJSONObject(0)
        val model = context.assets.open("$folder/${file.getString("path")}").readBytes()
        val sum = MessageDigest.getInstance("SHA-256").digest(model).joinToString("") { "%02x".format(it) }
        require(sum == file.getString("sha256")) { "${file.getString("path")} was altered" }
        val direct = ByteBuffer.allocateDirect(model.size).apply { put(model).rewind() }
        engine = FaceLabels(direct, manifest.getInt("feature_dim"), labels.size, temperature)
    }

    /** Label and probability of a face in an upright picture; [box] is a detector's, in pixels. */
    fun predict(picture: Bitmap, box: RectF): Pair<String, Double> {
        val pixels = IntArray(picture.width * picture.height)
        picture.getPixels(pixels, 0, picture.width, 0, 0, picture.width, picture.height)
        val (x, y) = box.left.toDouble() to box.top.toDouble()
        val (w, h) = box.width().toDouble() to box.height().toDouble()
        val crop = FaceCrop.crop(FaceCrop.gray(pixels), picture.width, picture.height, x, y, w, h, scale, side)
        val scores = engine.scores(crop)
        val best = scores.indices.maxByOrNull { scores[it] }!!
        return labels[best] to scores[best]
    }

    override fun close() = engine.close()

    private fun JSONArray.objects(): List<JSONObject> = List(length()) { getJSONObject(it) }
}
