/* Programs that fail when they are told to: for tests of what is left without them. In the agent that
 * people run this is nothing.
 */
#pragma once
#include "kernel.h"

#ifdef FAULTS

enum fault {
	FAULT_NONE,
	/* The verifier refuses it. */
	FAULT_VERIFIER,
	/* The kernel's type information lacks what it reads. */
	FAULT_RELOCATION,
};

/* In the order of src/tracker/faults.rs. */
enum program {
	PROGRAM_file_permission,
	PROGRAM_mmap_file,
	PROGRAM_security_mmap_file,
	PROGRAM_file_lock,
	PROGRAM_path_truncate,
	PROGRAM_file_truncate,
	PROGRAM_do_splice,
	PROGRAM_do_tee,
	PROGRAM_vmsplice,
	PROGRAM_mq_timedsend,
	PROGRAM_mq_timedreceive,
	PROGRAM_msgsnd,
	PROGRAM_msgrcv,
	PROGRAM_semop,
	PROGRAM_inotify_event,
	PROGRAM_io_msg_ring,
	PROGRAM_socket_sendmsg,
	PROGRAM_socket_recvmsg,
	PROGRAM_socket_connect,
	PROGRAM_socket_accept,
	PROGRAM_unix_stream_connect,
	PROGRAM_unix_may_send,
	PROGRAM_sched_waking,
	PROGRAM_signal_generate,
	PROGRAM_ptrace_access_check,
	PROGRAM_ptrace_traceme,
	PROGRAM_process_fork,
	PROGRAM_process_exit,
	PROGRAM_process_wait,
	PROGRAM_held_files,
	PROGRAM_mappings,
	PROGRAM_tasks,
	PROGRAM_unseen_file_permission,
	PROGRAM_unseen_file_lock,
	PROGRAM_unseen_truncate,
	PROGRAM_unseen_do_splice,
	PROGRAM_unseen_do_tee,
	PROGRAM_unseen_vmsplice,
	PROGRAM_unseen_mq_timedsend,
	PROGRAM_unseen_mq_timedreceive,
	PROGRAM_unseen_msgsnd,
	PROGRAM_unseen_semop,
	PROGRAM_unseen_inotify_event,
	PROGRAM_unseen_io_msg_ring,
	PROGRAM_unseen_socket_sendmsg,
	PROGRAM_unseen_socket_recvmsg,
	PROGRAM_unseen_socket_connect,
	PROGRAM_unseen_socket_accept,
	PROGRAM_unseen_unix_stream_connect,
	PROGRAM_unseen_unix_may_send,
	PROGRAM_unseen_msgrcv,
	PROGRAM_unseen_mmap_file,
	PROGRAM_unseen_insert_event,
	PROGRAMS,
};

/* Set before the programs are loaded: the verifier passes over what is not reached. */
const volatile u8 faults[PROGRAMS] = {};

struct task_struct___other {
	u64 no_such_field;
} __attribute__((preserve_access_index));

#define MAY_FAIL(name)                                                                             \
	do {                                                                                       \
		struct task_struct___other *fault_task_ = (void *)bpf_get_current_task();          \
		if (faults[PROGRAM_##name] == FAULT_VERIFIER)                                      \
			*(volatile u64 *)fault_task_ = 0;                                          \
		if (faults[PROGRAM_##name] == FAULT_RELOCATION)                                    \
			bpf_printk("%llu", BPF_CORE_READ(fault_task_, no_such_field));             \
	} while (0)

#else

#define MAY_FAIL(name)

#endif
