/* What the probes tell the agent. src/tracker/records.rs mirrors this file. */
#pragma once

enum kind {
	KIND_NONE,
	/* Objects. */
	KIND_PIPE,
	KIND_UNIX,
	KIND_TCP,
	KIND_UDP,
	KIND_VSOCK,
	KIND_NETLINK,
	KIND_TERMINAL,
	KIND_FILE,
	KIND_SHARED_MEMORY,
	KIND_MESSAGE_QUEUE,
	KIND_SEMAPHORE,
	KIND_POSIX_QUEUE,
	KIND_EVENT,
	KIND_BLOCK_DEVICE,
	/* A character device: a is its number. Whether it leads outside is the agent's to say. */
	KIND_DEVICE,
	/* The outside: a is an interface, and detail of it. */
	KIND_EXTERNAL,
	/* Another process: a is its pid, b its start. */
	KIND_PROCESS,
	/* Something that could not be looked at. The bits of a are the kinds of objects that it may
	 * have gone through: every process that uses such an object is concerned. */
	KIND_UNSEEN,
};

enum direction {
	READS = 1,
	WRITES = 2,
};

enum relation {
	RELATION_NONE,
	RELATION_FORKED,
	RELATION_SIGNALLED,
	RELATION_TRACED,
	RELATION_WOKE,
	RELATION_EXITED,
	RELATION_ENDED,
	/* Waits for children; the other process is itself. */
	RELATION_WAITS,
};

enum interface {
	INTERFACE_TCP,
	INTERFACE_TCP_LISTENING,
	INTERFACE_UDP,
	INTERFACE_OTHER_IP,
	INTERFACE_PACKET,
	INTERFACE_VSOCK,
	INTERFACE_OTHER_SOCKET,
	INTERFACE_SERIAL,
	INTERFACE_NETWORK_FS,
};

/* How a fact was found. */
enum origin {
	ORIGIN_EVENT,
	/* It stands: a mapping, a trace, an open connection. */
	ORIGIN_STANDING,
	/* A descriptor that could be used so. */
	ORIGIN_HELD,
};

struct edge_key {
	u32 pid;
	u16 kind;
	u8 direction;
	u8 relation;
	u64 start; /* ticks of 10 ms since the boot */
	u64 a, b;
};

struct edge_value {
	u8 address[16]; /* v4 addresses are mapped into v6 */
	u16 port;
	u16 origin;
	u32 pad;
};

struct edge {
	struct edge_key key;
	struct edge_value value;
};

/* A process of the snapshot. */
struct task_record {
	u32 pid;
	u32 parent;
	u64 start;
	u32 tracer;
	u32 kernel;
	u64 tracer_start;
	char comm[16];
};

_Static_assert(sizeof(struct edge_key) == 32, "as src/tracker/records.rs reads it");
_Static_assert(sizeof(struct edge) == 56, "as src/tracker/records.rs reads it");
_Static_assert(sizeof(struct task_record) == 48, "as src/tracker/records.rs reads it");
