// The npm packages @vladmandic/human and @vladmandic/face-api on pictures from standard input, as lab/rivals.py asks them:
// node lab/rivals.mjs FOLDER human|face-api, FOLDER with node_modules in it.
//
// A picture is three 32-bit numbers (little endian: width, height, whether it is a face crop) and RGB bytes; the answer is one
// line of JSON: {"label": the most probable one or null, "ms": of the call}. The first line says what is loaded.
import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

const [folder, name] = process.argv.slice(2);
const require = createRequire(path.resolve(folder, "package.json"));
const say = process.stdout.write.bind(process.stdout);
console.log = console.info = console.warn = (...words) => process.stderr.write(words.join(" ") + "\n");

// Models are files beside the packages: nothing is fetched.
globalThis.fetch = async (address) => {
  const file = String(address.url ?? address).replace(/^file:\/\//, "");
  return new Response(fs.readFileSync(file), { status: 200 });
};

const tf = require("@tensorflow/tfjs");
const wasm = require("@tensorflow/tfjs-backend-wasm");
wasm.setWasmPaths(path.dirname(require.resolve("@tensorflow/tfjs-backend-wasm")) + path.sep);
wasm.setThreadsCount(1);
const home = (packageName) => path.resolve(folder, "node_modules", packageName); // not all export their package.json
const version = (packageName) => JSON.parse(fs.readFileSync(path.join(home(packageName), "package.json"))).version;

async function human() {
  const { Human } = require(path.join(home("@vladmandic/human"), "dist", "human.node-wasm.js"));
  const models = path.join(home("@vladmandic/human"), "models");
  const off = { enabled: false };
  // As it ships, but for parts that say nothing of the expression, and for its memory of the last picture.
  const instance = new Human({
    backend: "wasm",
    wasmPath: path.dirname(require.resolve("@tensorflow/tfjs-backend-wasm")) + path.sep,
    modelBasePath: `file://${models}/`,
    cacheSensitivity: 0,
    face: { enabled: true, description: off, antispoof: off, liveness: off },
    body: off, hand: off, object: off, gesture: off, segmentation: off,
  });
  await instance.load();
  const weights = tf.tensor1d([0.2989, 0.587, 0.114]);
  const emotion = instance.models.models?.emotion ?? instance.models.emotion;
  const words = ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"];
  return {
    files: ["blazeface", "facemesh", "iris", "emotion"].map((file) => path.join(models, `${file}.bin`)),
    network: path.join(models, "emotion.bin"),
    // Its gear/emotion.ts: bilinear to the network's size, weighted to gray, -1 to 1.
    async crop(pixels) {
      const scores = tf.tidy(() => {
        const small = tf.image.resizeBilinear(pixels.toFloat().div(255).expandDims(0), [64, 64], false);
        return emotion.execute(small.mul(weights).sum(3, true).sub(0.5).mul(2));
      });
      const values = await scores.data();
      scores.dispose();
      return words[values.indexOf(Math.max(...values))];
    },
    async photo(pixels) {
      const found = await instance.detect(pixels);
      if (found.error) throw new Error(found.error);
      return found.face[0]?.emotion?.[0]?.emotion ?? null;
    },
  };
}

async function faceApi(detector) {
  const api = require(path.join(home("@vladmandic/face-api"), "dist", "face-api.node-wasm.js"));
  const models = path.join(home("@vladmandic/face-api"), "model");
  await api.tf.setBackend("wasm");
  await api.tf.ready();
  // Its weights are read from bytes, for want of a canvas.
  const load = async (net, file) => {
    const [manifest] = JSON.parse(fs.readFileSync(path.join(models, `${file}-weights_manifest.json`)));
    const bytes = fs.readFileSync(path.join(models, manifest.paths[0]));
    const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
    net.loadFromWeightMap(api.tf.io.decodeWeights(buffer, manifest.weights));
  };
  const files = { ssd: "ssd_mobilenetv1_model", tiny: "tiny_face_detector_model" };
  await load(detector === "ssd" ? api.nets.ssdMobilenetv1 : api.nets.tinyFaceDetector, files[detector]);
  await load(api.nets.faceExpressionNet, "face_expression_model");
  const options = detector === "ssd" ? new api.SsdMobilenetv1Options() : new api.TinyFaceDetectorOptions();
  const best = (scores) => scores.asSortedArray()[0].expression;
  // What it leaves of tensors would fill the memory that WebAssembly has.
  const swept = async (call) => {
    api.tf.engine().startScope();
    try {
      return await call();
    } finally {
      api.tf.engine().endScope();
    }
  };
  return {
    files: [files[detector], "face_expression_model"].map((file) => path.join(models, `${file}.bin`)),
    network: path.join(models, "face_expression_model.bin"),
    async crop(pixels) {
      return swept(async () => best(await api.nets.faceExpressionNet.predictExpressions(pixels.expandDims(0).toFloat())));
    },
    async photo(pixels) {
      return swept(async () => {
        const found = await api.detectSingleFace(pixels, options).withFaceExpressions();
        return found ? best(found.expressions) : null;
      });
    },
  };
}

await tf.setBackend("wasm");
await tf.ready();
const makers = { human: () => human(), "face-api": () => faceApi("ssd"), "face-api-tiny": () => faceApi("tiny") };
const rival = await makers[name]();
const size = (files) => files.reduce((sum, file) => sum + fs.statSync(file).size, 0);
const packageName = `@vladmandic/${name.replace("-tiny", "")}`;
say(JSON.stringify({ version: version(packageName), bytes: size(rival.files), network_bytes: size([rival.network]) }) + "\n");

let waiting = Buffer.alloc(0);
for await (const chunk of process.stdin) {
  waiting = Buffer.concat([waiting, chunk]);
  while (waiting.length >= 12) {
    const [width, height, crop] = [0, 4, 8].map((at) => waiting.readUInt32LE(at));
    const end = 12 + width * height * 3;
    if (waiting.length < end) break;
    const pixels = tf.tensor3d(new Uint8Array(waiting.subarray(12, end)), [height, width, 3], "int32");
    waiting = waiting.subarray(end);
    const began = process.hrtime.bigint();
    const label = crop ? await rival.crop(pixels) : await rival.photo(pixels);
    say(JSON.stringify({ label, ms: Number(process.hrtime.bigint() - began) / 1e6 }) + "\n");
    pixels.dispose();
  }
}
