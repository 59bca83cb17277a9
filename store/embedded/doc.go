// Package embedded is the log inside the broker's process: store.Store on Pebble,
// for one machine without MongoDB, with the same promises.
//
// # Nouns
//
// A Log is one Pebble database in one directory. It has one lane, lane 1, for
// ever; n is the position in the log. The committer is the one writer: it takes
// all that waits (appends, records, writes of sessions, claims, retained
// messages), stages it into one batch, commits that with an fsync, and answers.
// The ring holds the last messages for the tails. The catalog knows the topics.
// An epoch is a stretch of the log, about a UTC day, that retention drops as a
// whole. The space is what is left of the file system above the reserve; the
// clock is the machine's, as far as it is believed.
//
// # Invariants
//
// Invariant: nothing is answered, yielded by a tail or a read, or counted into
// the head before the batch that holds it was synced.
//
// Invariant: positions have no holes. One that is missing above the floor, which
// retention alone raises, is corruption.
//
// Invariant: n, ts, epochs, the numbers and the epochs of sessions only rise,
// also over a start, a clock that steps back, and retention that takes
// everything.
//
// Invariant: after a failure of the engine no batch is committed and nothing is
// answered as stored; Run returns the failure and the process should end.
//
// # Goroutines
//
// Run's caller is the committer. The log starts no other goroutine, but a short
// one for the refusal of an Append after the end; Pebble's own (flushes,
// compactions, the writer of its log) live from Open to the end of Run or Close.
//
// # On disk
//
// Numbers in keys are big-endian. Each value begins with a byte that names its
// encoding (but for empty ones and plain positions); what cannot be decoded is
// store.ErrCorrupt with the key and the reason.
//
//	f                              -> version of the format
//	h                              -> high-water marks (n, ts, session number, session
//	                                  epoch, topic id), counts, the time seen last
//	e | epoch4                     -> first position, day, newest time, what is gone
//
//	m | pos8 | topic4              -> id, ts, created, expiry, client, host, properties, payload
//	t | epoch4 | topic4 | pos8     -> ()         topic index
//	n | topic name                 -> topic4
//	N | topic4                     -> newest epoch of its use, topic name
//	x | message id                 -> pos8       of QoS 2 messages and wills
//
//	c | client id                  -> session8, sid, epoch, owner, expiry, times, wills
//	a | client id                  -> ()         a connection holds it
//	o | time8 | client id          -> ()         when it ends
//	v | time8 | client id          -> ()         when its next will is due
//	k | session8                   -> cursor: after, seq, flight; the first epoch with a
//	                                  record above seq
//	i | session8 | packet2         -> message id of a QoS 2 message from the client
//	p | session8 | seq8            -> ()         PUBREC came, and is not yet in the cursor
//	s | session8 | filter          -> subscription
//	d | epoch4 | session8 | seq8   -> delivery record
//
//	g | group                      -> group8, since, after, number of members
//	q | group8 | lane4 | n8        -> message id      claimed by a record, after `after`
//	u | group8 | lane4 | n8        -> message id      left by a lost member
//
//	r | topic name                 -> mark, message   retained, or cleared
//	R                              -> checkpoint of the retained messages
//	z | time8 | topic name         -> message id      when a cleared topic is forgotten
//
// The topic stands in the key of a message so that a scan can pass over what no
// filter wants without touching its value, which from 256 bytes on lies in a blob
// file. The session number is never given twice, so leftovers of a former session
// cannot count as the next one's; group numbers come from the same count. A record repeats client and topic, as the
// history outlives both. Retention drops m up to the first position of the oldest
// epoch that is kept, t and d by epoch, each by one range; x by the seconds in the
// ids; n and N of topics that no kept epoch has used.
//
// # Idempotence
//
// The ids of the last 65,536 to 131,072 messages are known in memory, also after
// a start; x knows those of QoS 2 messages and of wills for as long as retention
// keeps about their time. Only these can come again long after: a QoS 1 message
// is resent by its publisher under a new id. To index every id instead costs
// about a sixth of the append rate (measured with bench.
// BenchmarkAppendAgainstPebble, 100 bytes).
//
// # Damage
//
// A batch is one record of Pebble's log, and is synced before the next is
// written. So a record that is not whole, with a whole one behind it, is damage
// and refused; without one it is the torn tail of a crash: it is cut and reported
// (Recovery), and nothing of it was acknowledged. Damage to one record alone, the
// last, cannot be told from that. Damage in tables and blob files is found by
// their checksums when they are read; in the manifest, at the start.
package embedded
