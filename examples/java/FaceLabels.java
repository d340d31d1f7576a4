import java.nio.ByteBuffer;
import java.util.HashMap;
import java.util.Map;
import org.tensorflow.lite.Interpreter;

/**
 * The two outputs of a bundle's litert artefact, with LiteRT's Java API. Never run here: the API comes as an Android library
 * (com.google.ai.edge.litert:litert, or org.tensorflow:tensorflow-lite). tests/test_java.py compiles this against a stub of it.
 *
 * <p>Check the model's SHA-256 against the manifest before it is loaded, and what the device computes against the golden set:
 * `fer-edge verify` does both where Python runs.
 */
public final class FaceLabels implements AutoCloseable {
    private final Interpreter interpreter;
    private final int featureDim;
    private final int labels;
    private final double temperature;

    /** Sizes as the manifest has them; {@code temperature} of the default label set, as `fer-edge labels list` shows it. */
    public FaceLabels(ByteBuffer model, int featureDim, int labels, double temperature) {
        this.interpreter = new Interpreter(model, new Interpreter.Options().setNumThreads(2));
        this.featureDim = featureDim;
        this.labels = labels;
        this.temperature = temperature;
    }

    /** One crop of {@link FaceCrop#crop}: the probability of each label of the bundle's default label set. */
    public synchronized double[] scores(byte[] crop) {
        ByteBuffer image = ByteBuffer.allocateDirect(crop.length);
        image.put(crop).rewind();
        float[][] feature = new float[1][featureDim], logits = new float[1][labels];
        Map<String, Object> inputs = new HashMap<>(), outputs = new HashMap<>();
        inputs.put("image", image);
        outputs.put("feature", feature); // for other label sets: s <f/|f|, c_k>, see docs/convert.md
        outputs.put("logits", logits);
        interpreter.runSignature(inputs, outputs);
        double top = Double.NEGATIVE_INFINITY, total = 0;
        for (float logit : logits[0]) {
            if (Float.isNaN(logit) || Float.isInfinite(logit)) {
                throw new IllegalStateException("the engine answered with NaN or Inf");
            }
            top = Math.max(top, logit);
        }
        double[] scores = new double[labels];
        for (int k = 0; k < labels; k++) {
            total += scores[k] = Math.exp((logits[0][k] - top) / temperature);
        }
        for (int k = 0; k < labels; k++) {
            scores[k] /= total;
        }
        return scores;
    }

    @Override
    public void close() {
        interpreter.close();
    }
}
