// rdma_create_id(3): one connection or one listener. It never has a queue pair of the library's (rdma_create_qp(3)):
// the caller's is moved with queuePairAttributes().
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "provider/ibverbs/lifecycle.h"
#include "provider/rdmacm/event_channel.h"
#include "verbs/connection_manager.h"

namespace quorate::rdmacm {

class RdmaCmId final : public CmId {
 public:
  static std::shared_ptr<RdmaCmId> create(std::shared_ptr<RdmaCmEventChannel> channel, abi::EventChannel* handle);
  // Takes over an id that an event delivered.
  static std::shared_ptr<RdmaCmId> adopt(std::shared_ptr<RdmaCmEventChannel> channel, abi::Id* handle);
  ~RdmaCmId() override;

  std::string deviceName() override;
  int portNum() override;
  CmAddress localAddress() override;
  CmAddress peerAddress() override;
  void bindAddress(const CmAddress& address) override;
  void resolveAddress(const CmAddress& source, const CmAddress& destination, int timeoutMs) override;
  void resolveRoute(int timeoutMs) override;
  void listen(int backlog) override;
  void connect(const CmConnectionParameters& parameters) override;
  void establish() override;
  void accept(const CmConnectionParameters& parameters) override;
  void reject(const std::vector<uint8_t>& privateData) override;
  void disconnect() override;
  QpAttributes queuePairAttributes(QpState state) override;
  void close() override;
  bool closed() const override { return lifecycle_.closed(); }

 private:
  explicit RdmaCmId(std::shared_ptr<RdmaCmEventChannel> channel) : channel_(std::move(channel)) {}
  const Library& lib() const { return channel_->lib(); }
  // Refuses a call for which the library would follow a null pointer: before the id is bound to a device.
  void needDevice(const char* call, const std::string& what) const;
  void check(int result, const char* call, const std::string& what, const char* advice) const;

  const std::shared_ptr<RdmaCmEventChannel> channel_;
  abi::Id* handle_ = nullptr;  // set once, before the object is handed out
  ibverbs::Lifecycle lifecycle_{"CmId"};
};

}  // namespace quorate::rdmacm
