// rdma_create_event_channel(3): where the events of ids arrive.
#pragma once

#include <memory>
#include <mutex>

#include "provider/ibverbs/lifecycle.h"
#include "provider/rdmacm/library.h"
#include "verbs/connection_manager.h"

namespace quorate::rdmacm {

class RdmaCmEventChannel final : public CmEventChannel {
 public:
  static std::shared_ptr<RdmaCmEventChannel> open(const Library& lib);
  ~RdmaCmEventChannel() override;

  int fd() const override { return handle_->fd; }
  bool getEvent(CmEvent* event) override;
  std::shared_ptr<CmId> createId() override;
  void close() override;
  bool closed() const override { return lifecycle_.closed(); }

  const Library& lib() const { return lib_; }

 private:
  RdmaCmEventChannel(const Library& lib, abi::EventChannel* handle) : lib_(lib), handle_(handle) {}
  std::shared_ptr<RdmaCmEventChannel> self() {
    return std::static_pointer_cast<RdmaCmEventChannel>(shared_from_this());
  }

  const Library& lib_;
  abi::EventChannel* const handle_;
  ibverbs::Lifecycle lifecycle_{"CmEventChannel"};
  std::mutex reading_;  // one reader at a time, so that events of one id are handed over in order
};

}  // namespace quorate::rdmacm
