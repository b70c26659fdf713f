// An open device (ibv_open_device(3)) and the objects that hang directly from it.
#pragma once

#include <infiniband/verbs.h>

#include <atomic>
#include <memory>
#include <string>

#include "provider/ibverbs/library.h"
#include "provider/ibverbs/lifecycle.h"
#include "verbs/verbs.h"

namespace quorate::ibverbs {

class IbvContext final : public Context {
 public:
  static std::shared_ptr<IbvContext> open(const Library& lib, ibv_device* device);
  ~IbvContext() override;

  const DeviceInfo& device() const override { return info_; }
  DeviceAttributes queryDevice() override;
  ExtendedDeviceAttributes queryDeviceExtended() override;
  PortAttributes queryPort(int portNum) override;
  std::vector<GidEntry> queryGids(int portNum) override;
  uint16_t queryPkey(int portNum, int index) override;
  AddressVector addressVectorFromCompletion(int portNum, const WorkCompletion& completion, const uint8_t* grh) override;
  std::shared_ptr<Memory> allocateMemory(const MemoryOptions& options) override;
  std::shared_ptr<ProtectionDomain> allocateProtectionDomain() override;
  std::shared_ptr<CompletionChannel> createCompletionChannel() override;
  std::shared_ptr<CompletionQueue> createCompletionQueue(int depth, std::shared_ptr<CompletionChannel> channel,
                                                         const CqOptions& options = {}) override;
  bool accessFlagsRevocationIsSynchronous() const override;
  void close() override;
  bool closed() const override { return lifecycle_.closed(); }

  int asyncFd() override;
  bool getAsyncEvent(AsyncEvent* event) override;

  const Library& lib() const { return lib_; }
  // A number for a new shared receive queue, by which its completions are known. Throws QUORATE_LIMIT.
  uint32_t nextSharedQueueNumber();
  ibv_context* handle() const { return handle_; }
  // As read when the device was opened: the limits that arguments are checked against.
  const DeviceAttributes& limits() const { return limits_; }
  uint32_t maxMessageBytes() const { return maxMessageBytes_; }
  Lifecycle& lifecycle() { return lifecycle_; }

 private:
  IbvContext(const Library& lib, ibv_context* handle, DeviceInfo info);
  DeviceAttributes readDeviceAttributes();
  PortAttributes readPortAttributes(int portNum);
  void checkPort(int portNum) const;

  const Library& lib_;
  ibv_context* const handle_;
  const DeviceInfo info_;
  Lifecycle lifecycle_{"Context"};
  DeviceAttributes limits_;
  uint32_t maxMessageBytes_ = 0;  // the smallest of all ports
  std::atomic<uint32_t> lastSharedQueue_{0};
};

}  // namespace quorate::ibverbs
