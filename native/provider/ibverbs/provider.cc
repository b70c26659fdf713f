// The provider over the kernel's RDMA devices: lists and opens them.
#include <infiniband/verbs.h>

#include <cerrno>
#include <memory>
#include <string>
#include <vector>

#include "provider/ibverbs/context.h"
#include "provider/ibverbs/device_info.h"
#include "provider/ibverbs/errors.h"
#include "provider/ibverbs/library.h"
#include "verbs/verbs.h"

namespace quorate {
namespace ibverbs {
namespace {

// The devices of one moment. They can be opened only while the list is held.
class DeviceList {
 public:
  explicit DeviceList(const Library& lib) : lib_(lib) {
    errno = 0;
    devices_ = lib.getDeviceList(&count_);
    if (devices_ != nullptr) return;
    count_ = 0;
    // ENOSYS: the kernel has no RDMA at all (ib_uverbs is not loaded), which is a machine without devices.
    if (errno != ENOSYS && errno != ENOENT) {
      throwSystemError("ibv_get_device_list", errno, "Listing the RDMA devices",
                       "Check the permissions of /sys/class/infiniband and /dev/infiniband.");
    }
  }
  ~DeviceList() {
    if (devices_ != nullptr) lib_.freeDeviceList(devices_);
  }
  DeviceList(const DeviceList&) = delete;
  DeviceList& operator=(const DeviceList&) = delete;

  ibv_device** begin() const { return devices_; }
  ibv_device** end() const { return devices_ + count_; }

 private:
  const Library& lib_;
  ibv_device** devices_ = nullptr;
  int count_ = 0;
};

class IbverbsProvider final : public Provider {
 public:
  explicit IbverbsProvider(const Library& lib) : lib_(lib) {}

  const char* name() const override { return "ibverbs"; }

  std::vector<DeviceInfo> listDevices() override {
    const DeviceList devices(lib_);
    std::vector<DeviceInfo> infos;
    for (ibv_device* device : devices) infos.push_back(describeDevice(lib_, device));
    return infos;
  }

  std::shared_ptr<Context> openDevice(const std::string& name) override {
    const DeviceList devices(lib_);
    std::string names;
    for (ibv_device* device : devices) {
      if (name == lib_.getDeviceName(device)) return IbvContext::open(lib_, device);
      names += (names.empty() ? "" : ", ") + std::string(lib_.getDeviceName(device));
    }
    throw VerbsError(
        "QUORATE_NO_DEVICE",
        names.empty()
            ? "There is no RDMA device named " + name +
                  ": this machine shows none. Load the driver of the adapter (and ib_uverbs), or make a software "
                  "device: "
                  "modprobe rdma_rxe; rdma link add rxe0 type rxe netdev <interface>. Within one host the device "
                  "\"shm\" needs no hardware."
            : "There is no RDMA device named " + name + "; there are: " + names + ".");
  }

 private:
  const Library& lib_;
};

}  // namespace
}  // namespace ibverbs

std::unique_ptr<Provider> makeIbverbsProvider() {
  return std::make_unique<ibverbs::IbverbsProvider>(ibverbs::library());
}

}  // namespace quorate
