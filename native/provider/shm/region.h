// Protection domains and memory regions of the shm provider.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>

#include "provider/shm/context.h"
#include "provider/shm/memory.h"
#include "verbs/verbs.h"

namespace quorate::shm {

class ShmProtectionDomain final : public ProtectionDomain {
 public:
  explicit ShmProtectionDomain(std::shared_ptr<ShmContext> context)
      : context_(std::move(context)), id_(context_->nextProtectionDomain()) {}

  std::shared_ptr<MemoryRegion> registerMemory(std::shared_ptr<Memory> memory, size_t offset, size_t length,
                                               uint32_t access) override;
  std::shared_ptr<QueuePair> createQueuePair(const QpInit& init) override;
  std::shared_ptr<AddressHandle> createAddressHandle(const AddressVector& av) override;
  std::shared_ptr<SharedReceiveQueue> createSharedReceiveQueue(uint32_t maxWr) override;
  void close() override;
  bool closed() const override { return closed_.load(); }

  const std::shared_ptr<ShmContext>& context() const { return context_; }
  uint32_t id() const { return id_; }

 private:
  void requireOpen() const;

  const std::shared_ptr<ShmContext> context_;
  const uint32_t id_;
  Children children_;
  std::atomic<bool> closed_{false};
};

class ShmMemoryRegion final : public MemoryRegion {
 public:
  ShmMemoryRegion(std::shared_ptr<ShmProtectionDomain> domain, std::shared_ptr<ShmMemory> memory, size_t offset,
                  size_t length, uint32_t access);
  ~ShmMemoryRegion() override;

  uint32_t lkey() const override { return key_; }
  uint32_t rkey() const override { return key_; }
  uint64_t address() const override { return address_; }
  size_t length() const override { return length_; }
  uint32_t access() const override { return access_; }
  void close() override;
  bool closed() const override { return closed_.load(); }

 private:
  const std::shared_ptr<ShmProtectionDomain> domain_;
  std::shared_ptr<ShmMemory> memory_;
  const uint64_t address_;
  const size_t length_;
  const uint32_t access_;
  uint32_t index_ = 0;
  uint32_t key_ = 0;
  std::mutex closeMutex_;
  std::atomic<bool> closed_{false};
};

}  // namespace quorate::shm
