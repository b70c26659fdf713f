// The shm provider: one device, always there.
#include <memory>
#include <string>
#include <vector>

#include "provider/shm/context.h"
#include "verbs/verbs.h"

namespace quorate {
namespace {

class ShmProvider final : public Provider {
 public:
  explicit ShmProvider(const ShmOptions& options) : options_(options) {}

  const char* name() const override { return "shm"; }
  std::vector<DeviceInfo> listDevices() override { return {shm::ShmContext::describe(0)}; }
  std::shared_ptr<Context> openDevice(const std::string& name) override {
    if (name != "shm") {
      throw VerbsError("QUORATE_NO_DEVICE", "The shm provider has no device '" + name + "'; its only device is 'shm'");
    }
    return shm::ShmContext::open(options_.directory);
  }

 private:
  const ShmOptions options_;
};

}  // namespace

std::unique_ptr<Provider> makeShmProvider(const ShmOptions& options) {
  return std::make_unique<ShmProvider>(options);
}

}  // namespace quorate
