package session

// rule names one rule of the design. The simulation turns them off one by one
// and demands that its checkers notice: a rule that nothing misses is removed.
// In the broker all are on.
type rule uint32

const (
	ruleRecordFirst    rule = 1 << iota // the record is committed before the PUBLISH is written
	ruleTakenAfter                      // what needs no record waits, for after, until the records before it are committed
	ruleMergeEmpty                      // a merge with H needs an empty queue and reader
	ruleLongestFree                     // packet ids: the one free for longest
	ruleSaveAcks                        // a cursor is saved when acks changed it
	ruleSaveReceiving                   // a cursor says received where that is under way before it
	ruleDropRecord                      // too large: a record with Dropped, in its turn
	ruleLargeResend                     // too large at a resend: QoS 1 settled, QoS 2 goes on with PUBREL
	ruleRunSafe                         // the stored place of a run follows its records, as after does
	ruleRunBeforeSave                   // the place of a run is stored before a cursor beyond its records
	ruleRecBeforeRel                    // received is committed before PUBREL leaves
	ruleOfferAfter                      // what is offered is dropped unless it is after the session's own vector
	ruleSince                           // since is Head merged with H
	ruleBefore                          // the highest QoS so far holds for what lies before the replacement
	ruleSaveDrop                        // a drop at a resend is saved before anything more is sent
	ruleSaveRise                        // the cursor is saved before a subscription's QoS rises
	ruleRunSince                        // a run leaves out a topic whose message is after its place
	ruleRunWaits                        // a run starts when the hub has passed its place
	ruleInboundFirst                    // the inbound entry is committed before the message is appended
	ruleInboundAgain                    // a resend is appended again under its ID before PUBREC
	ruleInboundOut                      // the entry's removal is committed before PUBCOMP leaves
	ruleInOrder                         // QoS 2 and QoS 1 of one publisher stay in the order received
	ruleReleaseFlushed                  // released only when no record is waiting or in doubt
	ruleReleaseAppends                  // released only when no append is waiting or in doubt
	ruleReleaseSaved                    // the cursor is saved before the release
	ruleFencedSilent                    // an owner whose record meets a newer epoch sends nothing of it
)

// on tells whether a rule holds.
func (s *Session) on(r rule) bool { return s.off&r == 0 }
