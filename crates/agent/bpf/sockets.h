/* From a socket to an object that two processes share, or to the outside. */
#pragma once
#include "record.h"

#define V4_MAPPED 0xffff0000u

struct address {
	u8 bytes[16];
};

/* This machine's own addresses in all network namespaces; the agent fills it in. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct address);
	__type(value, u8);
} own_addresses SEC(".maps");

struct endpoint {
	struct address address;
	u16 port;
};

static __always_inline void map_v4(struct address *address, u32 v4)
{
	u32 *words = (u32 *)address->bytes;

	words[0] = 0;
	words[1] = 0;
	words[2] = V4_MAPPED;
	words[3] = v4;
}

static __always_inline bool is_v4(const struct address *address)
{
	const u32 *words = (const u32 *)address->bytes;

	return !words[0] && !words[1] && words[2] == V4_MAPPED;
}

static __always_inline bool is_unspecified(const struct address *address)
{
	const u32 *words = (const u32 *)address->bytes;

	return !words[0] && !words[1] && !words[3] && (!words[2] || words[2] == V4_MAPPED);
}

static __always_inline bool is_loopback(const struct address *address)
{
	const u32 *words = (const u32 *)address->bytes;

	if (is_v4(address))
		return address->bytes[12] == 127;
	return !words[0] && !words[1] && !words[2] && words[3] == bpf_htonl(1);
}

/* On this machine. */
static __always_inline bool is_own(struct address *address)
{
	return is_loopback(address) || is_unspecified(address) ||
	       bpf_map_lookup_elem(&own_addresses, address);
}

static __always_inline u64 folded(const struct endpoint *endpoint)
{
	const u64 *halves = (const u64 *)endpoint->address.bytes;

	if (is_v4(&endpoint->address))
		return ((halves[1] >> 32) << 16) | endpoint->port;
	return mix(mix(halves[0], halves[1]), endpoint->port);
}

static __always_inline void ends_of(struct sock *sk, struct endpoint *local, struct endpoint *remote)
{
	local->port = BPF_CORE_READ(sk, __sk_common.skc_num);
	remote->port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	if (BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET) {
		map_v4(&local->address, BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr));
		map_v4(&remote->address, BPF_CORE_READ(sk, __sk_common.skc_daddr));
		return;
	}
	if (!bpf_core_field_exists(sk->__sk_common.skc_v6_daddr))
		return; /* A kernel without IPv6. */
	BPF_CORE_READ_INTO(&local->address, sk, __sk_common.skc_v6_rcv_saddr);
	BPF_CORE_READ_INTO(&remote->address, sk, __sk_common.skc_v6_daddr);
}

/* Fills in the address that a message goes to, if it names one. */
static __always_inline bool named(struct msghdr *msg, struct endpoint *to)
{
	void *name = msg ? BPF_CORE_READ(msg, msg_name) : NULL;
	u16 family = 0;

	if (!name || bpf_probe_read_kernel(&family, sizeof(family), name))
		return false;
	if (family == AF_INET) {
		struct sockaddr_in in = {};

		bpf_probe_read_kernel(&in, sizeof(in), name);
		map_v4(&to->address, in.addr);
		to->port = bpf_ntohs(in.port);
		return true;
	}
	if (family == AF_INET6) {
		struct sockaddr_in6 in6 = {};

		bpf_probe_read_kernel(&in6, sizeof(in6), name);
		__builtin_memcpy(&to->address, in6.addr, sizeof(to->address));
		to->port = bpf_ntohs(in6.port);
		return true;
	}
	return false;
}

static __always_inline bool record_external(struct task_struct *task, u8 which, u32 detail,
					    u8 direction, const struct endpoint *peer)
{
	struct edge_value value = {};
	struct edge_key key;

	if (is_unwatched(task))
		return true;
	/* One edge a process and interface: the first peer stands for all. */
	key = key_of(task, KIND_EXTERNAL, interface(which, detail), 0, direction);
	if (peer) {
		__builtin_memcpy(value.address, &peer->address, sizeof(value.address));
		value.port = peer->port;
	}
	return record(&key, &value);
}

static __always_inline bool use_tcp(struct task_struct *task, const struct endpoint *local,
				    struct endpoint *remote, u8 direction)
{
	u64 ours = folded(local), theirs = folded(remote);

	if (!remote->port)
		return true;
	if (!is_own(&remote->address))
		return record_external(task, INTERFACE_TCP, 0, direction, remote);
	/* Both ends know the connection by the same key. */
	return record_flow(task, KIND_TCP, ours < theirs ? ours : theirs, ours < theirs ? theirs : ours,
			   direction);
}

/* A port on which somebody listens, apart from the connections made to it. */
#define LISTENER (~0ull)

static __always_inline bool use_listener(struct task_struct *task, u16 port, u8 direction)
{
	return record_flow(task, KIND_TCP, port, LISTENER, direction);
}

static __always_inline bool use_udp(struct task_struct *task, struct endpoint *local,
				    struct endpoint *remote, bool to_named, u8 direction)
{
	bool outside = remote->port || to_named ? !is_own(&remote->address) : false;

	/* The receiver's port is the object. */
	if (direction == WRITES)
		return outside ? record_external(task, INTERFACE_UDP, 0, direction, remote) :
				 record_flow(task, KIND_UDP, remote->port, 0, direction);
	/* Who is connected to nobody hears everybody, unless he is bound to the loopback. */
	if (outside || (!remote->port && !is_loopback(&local->address)))
		if (!record_external(task, INTERFACE_UDP, 0, direction, outside ? remote : local))
			return false;
	return record_flow(task, KIND_UDP, local->port, 0, direction);
}

static __always_inline bool use_ip(struct task_struct *task, struct sock *sk, struct msghdr *msg,
				   u8 direction)
{
	struct endpoint local = {}, remote = {};
	u16 type = BPF_CORE_READ(sk, sk_type);
	bool to_named = false;

	ends_of(sk, &local, &remote);
	if (direction == WRITES && type != SOCK_STREAM)
		to_named = named(msg, &remote);
	if (type == SOCK_STREAM)
		return use_tcp(task, &local, &remote, direction);
	if (type == SOCK_DGRAM)
		return use_udp(task, &local, &remote, to_named, direction);
	if (to_named && is_own(&remote.address))
		return true;
	return record_external(task, INTERFACE_OTHER_IP, BPF_CORE_READ(sk, sk_protocol), direction,
			       &remote);
}

/* Without the helper that follows a socket to its peer, the peer's cookie can only be read, not
 * made. Where the peer has none yet, its reader makes one later, and this write cannot be connected
 * with that reader any more. */
static __always_inline bool use_unix_before_5_16(struct task_struct *task, struct sock *sk)
{
	struct unix_sock *unix_sock = (struct unix_sock *)sk;
	struct sock *peer = BPF_CORE_READ(unix_sock, peer);
	u64 cookie;

	if (!peer)
		return true;
	cookie = BPF_CORE_READ(peer, __sk_common.skc_cookie.counter);
	if (!cookie)
		return record_flow(task, KIND_UNSEEN, 1ull << KIND_UNIX, 0, WRITES);
	return record_flow(task, KIND_UNIX, cookie, 0, WRITES);
}

/* The receiving socket is the object. */
static __always_inline bool use_unix(struct task_struct *task, struct sock *sk, u8 direction)
{
	struct unix_sock *unix_sock;
	struct sock *peer;

	if (direction == READS)
		return record_flow(task, KIND_UNIX, bpf_get_socket_cookie(sk), 0, READS);
	/* Datagrams name their receiver: see unix_may_send. */
	if (BPF_CORE_READ(sk, sk_type) == SOCK_DGRAM)
		return true;
	if (!bpf_core_enum_value_exists(enum bpf_func_id___later, BPF_FUNC_skc_to_unix_sock___later))
		return use_unix_before_5_16(task, sk);
	unix_sock = bpf_skc_to_unix_sock(sk);
	if (!unix_sock)
		return true;
	peer = unix_sock->peer;
	if (!peer)
		return true;
	return record_flow(task, KIND_UNIX, bpf_get_socket_cookie(peer), 0, WRITES);
}

/* A netlink socket's name: its protocol, and its own number there. */
static __always_inline u64 netlink_port(struct sock *sk)
{
	struct netlink_sock *netlink = (struct netlink_sock *)sk;

	return ((u64)BPF_CORE_READ(sk, sk_protocol) << 32) | BPF_CORE_READ(netlink, portid);
}

static __always_inline bool use_netlink(struct task_struct *task, struct sock *sk,
					struct msghdr *msg, u8 direction)
{
	struct netlink_sock *netlink = (struct netlink_sock *)sk;
	u64 protocol = (u64)BPF_CORE_READ(sk, sk_protocol) << 32;
	u32 to = BPF_CORE_READ(netlink, dst_portid);
	void *name = msg ? BPF_CORE_READ(msg, msg_name) : NULL;
	struct sockaddr_nl nl = {};

	if (direction == READS)
		return record_flow(task, KIND_NETLINK, netlink_port(sk), 0, READS);
	if (name && !bpf_probe_read_kernel(&nl, sizeof(nl), name))
		to = nl.portid;
	/* Port 0 is the kernel. */
	return to ? record_flow(task, KIND_NETLINK, protocol | to, 0, WRITES) : true;
}

struct sockaddr_vm___module {
	u32 svm_port;
	u32 svm_cid;
} __attribute__((preserve_access_index));

struct vsock_sock___module {
	struct sockaddr_vm___module local_addr;
	struct sockaddr_vm___module remote_addr;
} __attribute__((preserve_access_index));

#define VMADDR_CID_LOCAL 1

static __always_inline bool use_vsock(struct task_struct *task, struct sock *sk, u8 direction)
{
	struct vsock_sock___module *vsock = (struct vsock_sock___module *)sk;
	u32 our_port, their_port, our_cid, their_cid;

	/* The module may have come after the probes: then nobody knows where it leads. */
	if (!bpf_core_type_exists(struct vsock_sock___module))
		return record_external(task, INTERFACE_VSOCK, 0, direction, NULL);
	our_port = BPF_CORE_READ(vsock, local_addr.svm_port);
	our_cid = BPF_CORE_READ(vsock, local_addr.svm_cid);
	their_port = BPF_CORE_READ(vsock, remote_addr.svm_port);
	their_cid = BPF_CORE_READ(vsock, remote_addr.svm_cid);
	if (their_cid != VMADDR_CID_LOCAL && their_cid != our_cid)
		return record_external(task, INTERFACE_VSOCK, their_cid, direction, NULL);
	return record_flow(task, KIND_VSOCK, our_port < their_port ? our_port : their_port,
			   our_port < their_port ? their_port : our_port, direction);
}

/* Connected within this machine, or listening there only. */
static __always_inline bool is_local_vsock(struct sock *sk)
{
	struct vsock_sock___module *vsock = (struct vsock_sock___module *)sk;
	u32 our_cid, their_cid;

	if (!bpf_core_type_exists(struct vsock_sock___module))
		return false;
	our_cid = BPF_CORE_READ(vsock, local_addr.svm_cid);
	their_cid = BPF_CORE_READ(vsock, remote_addr.svm_cid);
	return our_cid == VMADDR_CID_LOCAL || their_cid == VMADDR_CID_LOCAL || our_cid == their_cid;
}

/* A socket is read or written. */
static __always_inline void use_socket(struct task_struct *task, struct sock *sk,
				       struct msghdr *msg, u8 direction)
{
	u16 family = sk->__sk_common.skc_family;
	u64 cookie = sk->__sk_common.skc_cookie.counter;
	bool to_name = direction == WRITES && msg && msg->msg_name;
	u64 signature = 0;
	bool done;

	/* A socket that names no receiver always has the same. */
	if (cookie && !to_name) {
		signature = mix(identity(task), (cookie << 2) + direction);
		if (is_seen(signature))
			return;
	} else if (!cookie) {
		bpf_get_socket_cookie(sk);
	}
	if (family == AF_UNIX)
		done = use_unix(task, sk, direction);
	else if (family == AF_INET || family == AF_INET6)
		done = use_ip(task, sk, msg, direction);
	else if (family == AF_NETLINK)
		done = use_netlink(task, sk, msg, direction);
	else if (family == AF_VSOCK)
		done = use_vsock(task, sk, direction);
	else if (family == AF_ALG)
		done = true;
	else if (family == AF_PACKET)
		done = record_external(task, INTERFACE_PACKET, 0, direction, NULL);
	else
		done = record_external(task, INTERFACE_OTHER_SOCKET, family, direction, NULL);
	if (done && signature)
		set_seen(signature);
}
