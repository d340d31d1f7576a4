#include "bundle.hpp"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <set>

#include "arrays.hpp"
#include "errors.hpp"

// The rules are those of fer_edge/manifest.py and fer_edge/bundle.py, and so are the limits.
namespace fer_edge {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr std::uint64_t most_manifest_bytes = 1u << 22, most_array_bytes = 1u << 27, most_model_bytes = std::uint64_t{1} << 35;
constexpr std::size_t most_label_sets = 1024, most_labels = 1u << 16, most_artefacts = 64;
constexpr std::size_t least_crops = 16, most_crops = 1024;

// A plain file's content. A link is not followed, a pipe not waited for. `size`: how long it has to be, or -1.
std::string read_file(const fs::path& path, std::uint64_t limit, std::int64_t size = -1) {
  const int file = ::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (file < 0) throw Error(path.string() + " cannot be read: " + std::strerror(errno));
  struct Closer {
    int file;
    ~Closer() { ::close(file); }
  } closer{file};
  struct stat about {};
  if (::fstat(file, &about) != 0 || !S_ISREG(about.st_mode)) throw Error(path.string() + " cannot be read: it is not a file");
  const auto length = static_cast<std::uint64_t>(about.st_size);
  if (size >= 0 && length != static_cast<std::uint64_t>(size))
    throw Error(path.string() + " was altered or truncated: expected " + std::to_string(size) + " bytes, found " + std::to_string(length));
  if (length > limit) throw Error(path.string() + " is too large: at most " + std::to_string(limit) + " bytes are read");
  std::string content(static_cast<std::size_t>(length), '\0');
  std::size_t done = 0;
  while (done < content.size()) {
    const ssize_t got = ::read(file, content.data() + done, content.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw Error(path.string() + " cannot be read: " + std::strerror(errno));
    if (got == 0) throw Error(path.string() + " was truncated while it was read");
    done += static_cast<std::size_t>(got);
  }
  return content;
}

std::string sha256(std::initializer_list<std::string_view> parts) {
  struct Context {
    EVP_MD_CTX* value = EVP_MD_CTX_new();
    Context() = default;
    Context(const Context&) = delete;
    Context& operator=(const Context&) = delete;
    ~Context() { EVP_MD_CTX_free(value); }
  } context;
  unsigned char sum[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  bool good = context.value != nullptr && EVP_DigestInit_ex(context.value, EVP_sha256(), nullptr) == 1;
  for (std::string_view part : parts) good = good && EVP_DigestUpdate(context.value, part.data(), part.size()) == 1;
  if (!good || EVP_DigestFinal_ex(context.value, sum, &length) != 1) throw Error("libcrypto cannot compute a SHA-256");
  std::string text;
  for (unsigned int i = 0; i < length; ++i) {
    text += "0123456789abcdef"[sum[i] >> 4];
    text += "0123456789abcdef"[sum[i] & 15];
  }
  return text;
}

// The manifest's fields, each of its own type and nothing that converts to it.
class Reader {
 public:
  Reader(const json& value, std::string where) : value_(value), where_(std::move(where)) {}

  Reader at(const char* name) const {
    if (!value_.is_object()) fail("an object");
    const auto found = value_.find(name);
    if (found == value_.end()) throw Error(where_ + " is malformed: field '" + name + "' is missing");
    return {*found, where_ + ": " + name};
  }
  bool has(const char* name) const { return value_.is_object() && value_.contains(name); }
  std::vector<Reader> items(std::size_t most) const {
    if (!value_.is_array() || value_.size() > most) fail("a list");
    std::vector<Reader> result;
    for (std::size_t i = 0; i < value_.size(); ++i) result.emplace_back(value_[i], where_ + "[" + std::to_string(i) + "]");
    return result;
  }
  const std::string& text() const {
    if (!value_.is_string()) fail("a text");
    return value_.get_ref<const std::string&>();
  }
  std::int64_t integer(std::int64_t least, std::int64_t most) const {
    const bool fits = value_.is_number_unsigned() ? value_.get<std::uint64_t>() <= static_cast<std::uint64_t>(most)
                                                  : value_.is_number_integer();
    if (!fits || value_.get<std::int64_t>() < least || value_.get<std::int64_t>() > most) fail("a whole number in range");
    return value_.get<std::int64_t>();
  }
  double number(double least, double most) const {
    if (!value_.is_number() || !(value_.get<double>() >= least && value_.get<double>() <= most)) fail("a number in range");
    return value_.get<double>();
  }
  bool null() const { return value_.is_null(); }
  const json& value() const { return value_; }
  [[noreturn]] void fail(const std::string& expected) const { throw Error(where_ + " is malformed: expected " + expected); }

 private:
  const json& value_;
  std::string where_;
};

// manifest.json, whose digest is the SHA-256 of itself without the digest's own line: canonical JSON has one field a line,
// and one space before those of the outermost object.
json read_manifest(const fs::path& folder, const std::string& digest) {
  const fs::path path = folder / "manifest.json";
  std::error_code problem;
  if (!fs::is_directory(folder, problem)) throw Error(folder.string() + " is not a bundle: it is no folder");
  if (!fs::exists(fs::symlink_status(path, problem))) throw Error(folder.string() + " is not a bundle: it has no manifest.json");
  const std::string raw = read_file(path, most_manifest_bytes);
  const json value = json::parse(raw, nullptr, false);
  if (value.is_discarded() || !value.is_object()) throw Error(path.string() + " is altered or truncated: it is not valid JSON");
  const Reader manifest(value, path.string());
  if (manifest.at("schema").integer(1, 1 << 30) > 2)
    throw Error(path.string() + " has schema " + value["schema"].dump() + ", this program reads up to 2");
  const std::string_view text(raw);
  const std::string& stated = manifest.at("digest").text();
  const std::string line = "\n \"digest\": \"" + stated + "\",";
  const std::size_t at = text.find(line);
  if (at == std::string_view::npos || sha256({text.substr(0, at), text.substr(at + line.size())}) != stated)
    throw Error(path.string() + " was altered: its digest does not match");
  if (!digest.empty() && digest != stated)
    throw Error(path.string() + " has the digest " + stated + ", and " + digest + " was asked for");
  return value;
}

// A file of the bundle, if that lies inside the folder, links followed.
fs::path inside(const fs::path& folder, const std::string& path) {
  bool bad = path.empty() || path.front() == '/' || path.find_first_of("\\:") != std::string::npos;
  for (const char c : path) bad = bad || static_cast<unsigned char>(c) < 0x20 || c == 0x7F;
  for (std::size_t begin = 0; begin <= path.size();) {
    const std::size_t end = std::min(path.find('/', begin), path.size());
    const std::string_view part = std::string_view(path).substr(begin, end - begin);
    bad = bad || part == "." || part == "..";
    begin = end + 1;
  }
  if (bad) throw Error((folder / "manifest.json").string() + " names a file that is no plain path inside the bundle");
  std::error_code problem;
  const fs::path root = fs::canonical(folder, problem), file = fs::canonical(folder / path, problem);
  if (problem) throw Error((folder / path).string() + " is missing from the bundle, or cannot be read: " + problem.message());
  const auto [end, unused] = std::mismatch(root.begin(), root.end(), file.begin(), file.end());
  (void)unused;
  if (end != root.end()) throw Error((folder / path).string() + " is a link out of the bundle; it is not read");
  return file;
}

std::string checked_file(const fs::path& folder, const Reader& ref, std::uint64_t limit, std::int64_t size = -1) {
  const std::string& path = ref.at("path").text();
  std::string content = read_file(inside(folder, path), limit, size);
  if (sha256({content}) != ref.at("sha256").text()) throw Error((folder / path).string() + " was altered: its SHA-256 is another");
  return content;
}

std::vector<std::string> label_names(const Reader& ref) {
  std::vector<std::string> names;
  for (const Reader& label : ref.at("labels").items(most_labels)) {
    names.push_back(label.text());
    for (const char c : names.back())
      if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) label.fail("a label without control characters");
  }
  if (names.empty() || std::set<std::string>(names.begin(), names.end()).size() != names.size()) ref.fail("labels, each once");
  return names;
}

LabelSet read_labels(const Reader& ref, const std::string& content, const std::string& file, std::size_t wide) {
  LabelSet set;
  set.labels = label_names(ref);
  const auto arrays = read_npz(content, file);
  const auto member = [&](const char* name) -> const Array& {
    const auto found = arrays.find(name);
    if (found == arrays.end()) throw Error(file + " does not hold the array " + name);
    return found->second;
  };
  const auto scalar = [&](const char* name, double least, double most) {
    const double value = number(member(name), file + ": " + name);
    if (!(value >= least && value <= most)) throw Error(file + ": " + name + " is out of range");
    return value;
  };
  const std::size_t count = set.labels.size();
  if (texts(member("names"), count, file + ": names") != set.labels) throw Error(file + " has other labels than the manifest");
  set.constants = floats(member("constants"), {count, wide}, file + ": constants");
  for (std::size_t row = 0; row < count; ++row) {
    double square = 0;
    for (std::size_t i = row * wide; i < (row + 1) * wide; ++i) square += static_cast<double>(set.constants[i]) * static_cast<double>(set.constants[i]);
    if (!(square <= 1.01)) throw Error(file + ": constants are longer than means of unit vectors can be");
  }
  set.logit_scale = scalar("logit_scale", 1e-6, 1e6);
  set.temperature = scalar("temperature", 1e-6, 1e6);
  if (arrays.count("threshold") != 0) set.threshold = scalar("threshold", 0, 1);
  if (arrays.count("least_length") != 0) set.least_length = scalar("least_length", 0, 1e30);
  return set;
}

Golden read_golden(const std::string& content, const std::string& file, const Input& input, std::size_t wide) {
  const auto arrays = read_npz(content, file);
  const auto crops = arrays.find("crops"), features = arrays.find("features");
  if (crops == arrays.end() || features == arrays.end() || features->second.shape.empty())
    throw Error(file + " does not hold the arrays crops and features");
  Golden golden;
  golden.count = features->second.shape[0];
  if (golden.count < least_crops || golden.count > most_crops) throw Error(file + " holds " + std::to_string(golden.count) + " crops");
  golden.crops = bytes(crops->second, {golden.count, input.height, input.width, input.channels}, file + ": crops");
  golden.features = floats(features->second, {golden.count, wide}, file + ": features");
  for (const float value : golden.features)
    if (!std::isfinite(value)) throw Error(file + ": features are not finite");
  return golden;
}

Input read_input(const Reader& spec, bool has_crop) {
  Input input;
  input.height = static_cast<std::size_t>(spec.at("height").integer(1, 4096));
  input.width = static_cast<std::size_t>(spec.at("width").integer(1, 4096));
  const std::string& color = spec.at("color").text();
  if (color != "rgb" && color != "gray") spec.at("color").fail("rgb or gray");
  input.channels = color == "rgb" ? 3 : 1;
  if (spec.at("resize").text() != "stretch-bilinear") spec.at("resize").fail("stretch-bilinear");
  if (has_crop) input.scale = spec.at("crop").at("scale").number(0.1, 10);
  return input;
}

// The bars of fer_edge/golden.py, which no manifest can lower.
std::map<std::string, double> bars_of(const Reader& thresholds, const std::string& precision) {
  std::map<std::string, double> bars = {{"centred_cosine", 0.999}, {"self_retrieval", 1.0}, {"score_difference", 1e-3}};
  if (precision == "fp16") bars = {{"centred_cosine", 0.99}, {"self_retrieval", 1.0}, {"score_difference", 1e-2}};
  if (precision == "int8") bars = {{"centred_cosine", 0.95}, {"self_retrieval", 0.95}, {"top1_agreement", 0.9}};
  if (!thresholds.has(precision.c_str())) return bars;
  const Reader asked = thresholds.at(precision.c_str());
  if (!asked.value().is_object()) asked.fail("an object");
  for (const auto& [name, unused] : asked.value().items()) {
    (void)unused;
    const double bar = asked.at(name.c_str()).number(-1e30, 1e30);
    const auto floor = bars.find(name);
    if (floor == bars.end())
      bars[name] = bar;
    else
      floor->second = name == "score_difference" ? std::min(floor->second, bar) : std::max(floor->second, bar);
  }
  return bars;
}

// The artefact of OpenVINO of this precision, or of the first that there is.
Reader choose_artefact(const Reader& manifest, const std::string& folder, const std::string& precision) {
  const std::vector<std::string> wanted = precision.empty() ? std::vector<std::string>{"int8", "fp16", "fp32"} : std::vector<std::string>{precision};
  for (const std::string& name : wanted)
    for (const Reader& artefact : manifest.at("artefacts").items(most_artefacts))
      if (artefact.at("runtime").text() == "openvino" && artefact.at("precision").text() == name &&
          (!artefact.has("target") || artefact.at("target").null()))
        return artefact;
  throw Error(folder + " has no " + (precision.empty() ? "" : precision + " ") + "artefact for openvino");
}

bool ends_with(const std::string& text, std::string_view end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

}  // namespace

Bundle read_bundle(const std::string& folder, const std::string& precision, const std::string& labels, const std::string& digest) {
  const fs::path root(folder);
  const json value = read_manifest(root, digest);
  const Reader manifest(value, (root / "manifest.json").string());
  Bundle bundle;
  bundle.folder = folder;
  bundle.input = read_input(manifest.at("input"), manifest.at("schema").integer(1, 2) >= 2);
  bundle.feature_dim = static_cast<std::size_t>(manifest.at("feature_dim").integer(1, 1 << 16));

  const std::string& standard = manifest.at("default_labels").text();
  const std::string& wanted = labels.empty() ? standard : labels;
  bool has_set = false;
  std::string names;
  for (const Reader& ref : manifest.at("label_sets").items(most_label_sets)) {
    const std::string content = checked_file(root, ref, most_array_bytes);  // of every set: any altered file is told of
    const std::string& name = ref.at("name").text();
    names += (names.empty() ? "" : ", ") + name;
    if (name == standard) bundle.graph_labels = label_names(ref).size();
    if (name != wanted) continue;
    bundle.labels = read_labels(ref, content, (root / ref.at("path").text()).string(), bundle.feature_dim);
    has_set = true;
  }
  if (!has_set) throw Error(folder + " has no label set '" + wanted + "'; it has " + names);
  if (bundle.graph_labels == 0) manifest.at("default_labels").fail("a label set of the bundle");

  const Reader golden = manifest.at("golden");
  const std::string golden_file = (root / golden.at("path").text()).string();
  bundle.golden = read_golden(checked_file(root, golden, most_array_bytes), golden_file, bundle.input, bundle.feature_dim);

  const Reader artefact = choose_artefact(manifest, folder, precision);
  bundle.precision = artefact.at("precision").text();
  bundle.golden.bars = bars_of(golden.at("thresholds"), bundle.precision);
  const std::vector<Reader> files = artefact.at("files").items(2);
  if (files.size() != 2 || !ends_with(files[0].at("path").text(), ".xml") || !ends_with(files[1].at("path").text(), ".bin"))
    artefact.fail("an .xml and a .bin");
  const auto content = [&](const Reader& ref) {
    const std::int64_t size = ref.at("bytes").integer(0, static_cast<std::int64_t>(most_model_bytes));
    return checked_file(root, ref, most_model_bytes, size);
  };
  bundle.model = content(files[0]);
  bundle.weights = content(files[1]);
  return bundle;
}

}  // namespace fer_edge
