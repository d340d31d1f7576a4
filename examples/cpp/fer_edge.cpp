#include "fer_edge.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <mutex>
#include <openvino/runtime/core.hpp>
#include <openvino/runtime/properties.hpp>
#include <set>

#include "bundle.hpp"
#include "errors.hpp"
#include "picture.hpp"

struct fer_edge_classifier {
  fer_edge::Bundle bundle;  // its weights are read by the engine as long as that lives
  std::mutex busy;
  ov::Core core;
  ov::CompiledModel compiled;
  ov::InferRequest request;
};

namespace fer_edge {
namespace {

thread_local std::string last_error;

// The last telling line of an engine's error: engines print traces of their own sources.
std::string one_line(const std::string& text) {
  std::string last;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    const std::size_t first = line.find_first_not_of(" \t\r");
    if (first != std::string::npos) last = line.substr(first, line.find_last_not_of(" \t\r") + 1 - first);
    begin = end + 1;
  }
  return last.substr(0, 300);
}

// Run `work`; its error stays here, for fer_edge_error, and gives `failed`.
template <typename Work, typename Result>
Result guarded(Result failed, const Work& work) noexcept {
  try {
    last_error.clear();
    return work();
  } catch (const std::bad_alloc&) {
    last_error.assign("no memory");  // short enough to need none
  } catch (const std::exception& error) {
    try {
      last_error = one_line(error.what());
    } catch (...) {
      last_error.assign("no memory");
    }
  } catch (...) {
    last_error.assign("unknown");
  }
  return failed;
}

int usable_processors() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
}

// As runtimes/run_openvino.py: on a device that is named, in the artefact's own arithmetic, for the shortest answer.
void open_engine(fer_edge_classifier& classifier, const std::string& device, int threads) {
  const Bundle& bundle = classifier.bundle;
  const std::string base = device.substr(0, device.find('.'));
  std::string known;
  bool exists = false;
  for (const std::string& name : classifier.core.get_available_devices()) {
    known += (known.empty() ? "" : ", ") + name;
    exists = exists || name.substr(0, name.find('.')) == base;
  }
  if (!exists) throw Error("openvino has no device '" + device + "' here; there are " + known);  // AUTO and its kin too
  ov::AnyMap config = {ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY)};
  if (base != "NPU") config.insert(ov::hint::inference_precision(ov::element::f32));
  if (base == "CPU") config.insert({ov::inference_num_threads(threads), ov::num_streams(1)});

  const std::size_t start = bundle.model.find_first_not_of(" \t\r\n");
  if (start == std::string::npos || bundle.model.compare(start, 1, "<") != 0 || bundle.model.substr(0, 4096).find("<net") == std::string::npos)
    throw Error(bundle.folder + ": the .xml is not an OpenVINO model, as its ending says");
  // On the memory where the weights lie: OpenVINO only reads it.
  static unsigned char nothing[1] = {};
  void* weights = bundle.weights.empty() ? nothing : static_cast<void*>(const_cast<char*>(bundle.weights.data()));
  const ov::Tensor tensor(ov::element::u8, {std::max<std::size_t>(1, bundle.weights.size())}, weights);
  const auto model = classifier.core.read_model(bundle.model, tensor);
  const auto shaped = [](const ov::Output<ov::Node>& port, ov::element::Type type, const ov::Shape& shape) {
    return port.get_element_type() == type && port.get_partial_shape() == ov::PartialShape(shape);
  };
  const ov::Shape input{1, bundle.input.height, bundle.input.width, bundle.input.channels};
  bool fits = model->inputs().size() == 1 && shaped(model->input(), ov::element::u8, input) && model->outputs().size() == 2;
  for (const auto& [name, wide] : {std::pair{"feature", bundle.feature_dim}, std::pair{"logits", bundle.graph_labels}}) {
    bool has = false;
    for (const auto& output : model->outputs())
      has = has || (output.get_names().count(name) != 0 && shaped(output, ov::element::f32, {1, wide}));
    fits = fits && has;
  }
  if (!fits) throw Error(bundle.folder + ": the OpenVINO model is not the one that the manifest promises");
  classifier.compiled = classifier.core.compile_model(model, device, config);
  classifier.request = classifier.compiled.create_infer_request();
}

// The engine's feature of one crop. The caller holds `busy`, or is alone.
std::vector<double> run(fer_edge_classifier& classifier, const std::uint8_t* crop) {
  ov::Tensor input = classifier.request.get_input_tensor();
  std::memcpy(input.data<std::uint8_t>(), crop, input.get_byte_size());
  classifier.request.infer();
  const ov::Tensor feature = classifier.request.get_tensor("feature");
  if (feature.get_size() != classifier.bundle.feature_dim) throw Error("openvino answered with another number of values than it promised");
  const float* values = feature.data<const float>();
  return std::vector<double>(values, values + feature.get_size());
}

double length_of(const std::vector<double>& feature) {
  double square = 0;
  for (const double v : feature) square += v * v;
  return std::sqrt(square);
}

// softmax(s <f/|f|, c_k> / temperature), in float64: fer_edge/labels.py, score_one.
std::vector<double> scores_of(const LabelSet& set, const std::vector<double>& feature) {
  const double length = length_of(feature), unit = length > 0 ? length : 1.0;
  std::vector<double> scores(set.labels.size());
  for (std::size_t k = 0; k < scores.size(); ++k) {
    double product = 0;
    for (std::size_t i = 0; i < feature.size(); ++i) product += feature[i] * static_cast<double>(set.constants[k * feature.size() + i]);
    scores[k] = product * set.logit_scale / (unit * set.temperature);
  }
  const double top = *std::max_element(scores.begin(), scores.end());
  double total = 0;
  for (double& score : scores) total += score = std::exp(score - top);
  for (double& score : scores) score /= total;
  return scores;
}

std::size_t best_of(const std::vector<double>& scores) {
  return static_cast<std::size_t>(std::max_element(scores.begin(), scores.end()) - scores.begin());
}

bool is_finite(const std::vector<double>& feature) {
  return std::all_of(feature.begin(), feature.end(), [](double v) { return std::isfinite(v); });
}

// fer_edge/golden.py, measure: every golden crop twice, the second time backwards, compared with the float reference.
fer_edge_parity measure(fer_edge_classifier& classifier) {
  const Golden& golden = classifier.bundle.golden;
  const std::size_t count = golden.count, wide = classifier.bundle.feature_dim, size = golden.crops.size() / count;
  fer_edge_parity parity{0, 0, 0, 1, 1, 1};
  std::vector<std::vector<double>> found(count), expected(count);
  for (std::size_t i = 0; i < count; ++i) found[i] = run(classifier, golden.crops.data() + i * size);
  for (std::size_t i = count; i-- > 0;) {
    if (run(classifier, golden.crops.data() + i * size) != found[i]) parity.repeatable = 0;
    if (!is_finite(found[i])) parity.finite = 0;
    expected[i].assign(golden.features.begin() + static_cast<std::ptrdiff_t>(i * wide), golden.features.begin() + static_cast<std::ptrdiff_t>((i + 1) * wide));
  }
  if (parity.finite == 0) return parity;
  parity.score_difference = 0;
  std::vector<double> mean(wide);
  for (const auto& feature : expected)
    for (std::size_t d = 0; d < wide; ++d) mean[d] += feature[d] / static_cast<double>(count);
  const double share = 1.0 / static_cast<double>(count);
  for (std::size_t i = 0; i < count; ++i) {
    const auto got = scores_of(classifier.bundle.labels, found[i]), wanted = scores_of(classifier.bundle.labels, expected[i]);
    for (std::size_t k = 0; k < got.size(); ++k) parity.score_difference = std::max(parity.score_difference, std::fabs(got[k] - wanted[k]));
    if (best_of(got) == best_of(wanted)) parity.top1_agreement += share;
  }
  for (auto* features : {&found, &expected})
    for (auto& feature : *features) {
      for (std::size_t d = 0; d < wide; ++d) feature[d] -= mean[d];
      const double length = length_of(feature);
      for (double& v : feature) v /= length > 0 ? length : 1.0;
    }
  for (std::size_t i = 0; i < count; ++i) {
    std::vector<double> cosines(count);
    for (std::size_t j = 0; j < count; ++j)
      for (std::size_t d = 0; d < wide; ++d) cosines[j] += found[i][d] * expected[j][d];
    parity.centred_cosine += cosines[i] * share;
    if (best_of(cosines) == i) parity.self_retrieval += share;
  }
  return parity;
}

// What falls short of the bars, in words; "" when nothing does.
std::string shortfall(const fer_edge_parity& parity, const std::map<std::string, double>& bars) {
  if (parity.finite == 0) return "the output has NaN or Inf";
  if (parity.repeatable == 0) return "two runs gave different outputs";
  constexpr double rounding = 1e-9;  // of the sums of shares
  for (const auto& [name, bar] : bars) {
    const bool upper = name == "score_difference";
    const double value = upper                        ? parity.score_difference
                         : name == "centred_cosine" ? parity.centred_cosine
                         : name == "self_retrieval" ? parity.self_retrieval
                         : name == "top1_agreement" ? parity.top1_agreement
                                                    : throw Error("nothing here measures the bar " + name);
    if (!(upper ? value <= bar : value >= bar - rounding))
      return name + " " + std::to_string(value) + " is " + (upper ? "above " : "below ") + std::to_string(bar);
  }
  return "";
}

std::string text_or_nothing(const char* text) { return text == nullptr ? "" : text; }

}  // namespace
}  // namespace fer_edge

using namespace fer_edge;

int32_t fer_edge_abi(void) { return FER_EDGE_ABI; }

const char* fer_edge_error(void) { return last_error.c_str(); }

fer_edge_classifier* fer_edge_open(const char* bundle, const fer_edge_options* options) {
  return guarded(static_cast<fer_edge_classifier*>(nullptr), [&] {
    if (bundle == nullptr) throw Error("a bundle's folder is wanted");
    const fer_edge_options standard{}, &chosen = options == nullptr ? standard : *options;
    const std::string precision = text_or_nothing(chosen.precision);
    if (!std::set<std::string>{"", "int8", "fp16", "fp32"}.count(precision))
      throw Error("no precision '" + precision + "'; there are int8, fp16, fp32");
    if (chosen.threads < 0 || chosen.threads > 1024) throw Error("threads are 1 to 1024, or 0: all processors, up to 4");
    auto classifier = std::make_unique<fer_edge_classifier>();
    classifier->bundle = read_bundle(bundle, precision, text_or_nothing(chosen.labels), text_or_nothing(chosen.digest));
    const int threads = chosen.threads != 0 ? chosen.threads : std::min(4, usable_processors());
    const std::string device = chosen.device == nullptr ? "CPU" : chosen.device;
    try {
      open_engine(*classifier, device, threads);
    } catch (const Error&) {
      throw;
    } catch (const std::exception& error) {
      throw Error("openvino on " + device + " refuses the model of " + bundle + ": " + one_line(error.what()));
    }
    return classifier.release();
  });
}

void fer_edge_close(fer_edge_classifier* classifier) {
  guarded(0, [&] {
    delete classifier;
    return 0;
  });
}

int32_t fer_edge_label_count(const fer_edge_classifier* classifier) {
  return guarded(-1, [&] {
    if (classifier == nullptr) throw Error("a classifier is wanted");
    return static_cast<int32_t>(classifier->bundle.labels.labels.size());
  });
}

const char* fer_edge_label(const fer_edge_classifier* classifier, int32_t index) {
  return guarded(static_cast<const char*>(nullptr), [&] {
    if (classifier == nullptr) throw Error("a classifier is wanted");
    const auto& labels = classifier->bundle.labels.labels;
    if (index < 0 || static_cast<std::size_t>(index) >= labels.size())
      throw Error("there is no label " + std::to_string(index) + "; there are " + std::to_string(labels.size()));
    return labels[static_cast<std::size_t>(index)].c_str();
  });
}

int32_t fer_edge_predict(fer_edge_classifier* classifier, const fer_edge_picture* picture, const fer_edge_box* box,
                         fer_edge_prediction* prediction, double* scores) {
  return guarded(-1, [&] {
    if (classifier == nullptr || picture == nullptr || prediction == nullptr)
      throw Error("a classifier, a picture and room for the prediction are wanted");
    const std::vector<std::uint8_t> crop = to_input(*picture, box, classifier->bundle.input);
    std::vector<double> feature;
    {
      const std::lock_guard<std::mutex> alone(classifier->busy);
      feature = run(*classifier, crop.data());
    }
    if (!is_finite(feature)) throw Error("openvino answered with NaN or Inf; run fer_edge_verify");
    const LabelSet& set = classifier->bundle.labels;
    const std::vector<double> all = scores_of(set, feature);
    const std::size_t best = best_of(all);
    prediction->label = static_cast<int32_t>(best);
    prediction->score = all[best];
    prediction->certain = all[best] >= set.threshold && length_of(feature) >= set.least_length ? 1 : 0;
    if (scores != nullptr) std::copy(all.begin(), all.end(), scores);
    return 0;
  });
}

int32_t fer_edge_verify(fer_edge_classifier* classifier, fer_edge_parity* parity) {
  return guarded(-1, [&] {
    if (classifier == nullptr) throw Error("a classifier is wanted");
    const std::lock_guard<std::mutex> alone(classifier->busy);
    const fer_edge_parity measured = measure(*classifier);
    last_error = shortfall(measured, classifier->bundle.golden.bars);
    if (parity != nullptr) *parity = measured;
    return last_error.empty() ? 0 : 1;
  });
}

fer_edge_picture* fer_edge_read_picture(const char* path) {
  return guarded(static_cast<fer_edge_picture*>(nullptr), [&] {
    if (path == nullptr) throw Error("a picture's path is wanted");
    const Pixels pixels = read_pnm(path);
    auto values = std::make_unique<std::uint8_t[]>(pixels.values.size());
    std::copy(pixels.values.begin(), pixels.values.end(), values.get());
    auto* picture = new fer_edge_picture{values.get(), pixels.width, pixels.height, pixels.channels, 0};
    values.release();
    return picture;
  });
}

void fer_edge_free_picture(fer_edge_picture* picture) {
  if (picture == nullptr) return;
  delete[] picture->pixels;
  delete picture;
}
