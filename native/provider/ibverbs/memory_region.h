// ibv_reg_mr(3): a part of a Memory that the device may use, with what peers may do to it.
#pragma once

#include <infiniband/verbs.h>

#include <atomic>
#include <memory>
#include <mutex>

#include "provider/ibverbs/lifecycle.h"
#include "provider/ibverbs/memory.h"
#include "provider/ibverbs/protection_domain.h"
#include "verbs/verbs.h"

namespace quorate::ibverbs {

class IbvMemoryRegion final : public MemoryRegion {
 public:
  static std::shared_ptr<IbvMemoryRegion> registerOver(std::shared_ptr<IbvProtectionDomain> domain,
                                                       std::shared_ptr<Memory> memory, size_t offset, size_t length,
                                                       uint32_t access);
  ~IbvMemoryRegion() override;

  uint32_t lkey() const override { return lkey_.load(); }
  uint32_t rkey() const override { return rkey_.load(); }
  uint64_t address() const override { return address_.load(); }
  size_t length() const override { return length_.load(); }
  uint32_t access() const override { return access_.load(); }
  // ibv_rereg_mr(3). Where the device fails in the middle of it, the region is of no more use but to be closed.
  void reregister(const Changes& changes) override;
  // ibv_dereg_mr(3). When it returns, no byte of a remote operation through this region can still land: the device
  // (the rxe driver, too) waits for the references that packets in execution hold. A device that refuses leaves the
  // right in force: QUORATE_REVOKE_FAILED, and the object stays open, so that close() can be tried again.
  void close() override;
  bool closed() const override { return lifecycle_.closed(); }

  ibv_mr* handle() const { return handle_; }
  Lifecycle& lifecycle() { return lifecycle_; }

 private:
  IbvMemoryRegion(std::shared_ptr<IbvProtectionDomain> domain, std::shared_ptr<MappedMemory> memory, size_t offset,
                  ibv_mr* handle, uint64_t address, size_t length, uint32_t access);

  std::mutex changeMutex_;  // one change at a time; guards the three that follow, together with the lifecycle
  std::shared_ptr<IbvProtectionDomain> domain_;
  std::shared_ptr<MappedMemory> memory_;  // let go when the region is closed
  size_t offset_;
  ibv_mr* const handle_;
  std::atomic<uint32_t> lkey_, rkey_;
  std::atomic<uint64_t> address_;
  std::atomic<size_t> length_;
  std::atomic<uint32_t> access_;
  Lifecycle lifecycle_{"MemoryRegion"};
};

}  // namespace quorate::ibverbs
