package storetest

import (
	"context"
	"errors"
	"slices"

	"rewindmq/schema"
	"rewindmq/store"
)

// off makes the model's groups wrong in one point.
func off(f groupFault) func(*broken) {
	return func(b *broken) { b.model(func(m *Model) { m.groupFaults = f }) }
}

// bendRecords changes each record before it is stored.
func bendRecords(fn func(*schema.Delivery)) func(*broken) {
	return func(b *broken) {
		b.record = func(b *broken, batch []schema.Delivery) []error {
			batch = slices.Clone(batch)
			for i := range batch {
				fn(&batch[i])
			}
			return b.Memory.Record(context.Background(), batch)
		}
	}
}

func groupFaults() []fault {
	return []fault{
		{"a group begins before everything", "Group/BeginsAtSince", off(groupAtZero)},
		{"a group outlives its last UNSUBSCRIBE", "Group/G3_GoesWithLastMember", off(groupEternal)},
		{"a group outlives its last session", "Group/G3_GoesWithSession", off(groupEternal)},
		{"a group outlives its last session's expiry", "Group/G3_GoesWithExpiry", off(groupEternal)},
		{"nothing goes back at a release", "Group/G2_Again/Release", off(keepsAll)},
		{"nothing goes back after a SIGKILL", "Group/G2_Again/Reopen", off(keepsAll)},
		{"what goes back stays in the flight", "Group/G2_Again/Release", off(keepsFlight)},
		{"what goes back after a SIGKILL stays in the flight", "Group/G2_Again/Reopen", off(keepsFlight)},
		{"QoS 2 goes back at a release", "Group/QoS2Stays/Release", off(handsBack2)},
		{"QoS 2 goes back after a SIGKILL", "Group/QoS2Stays/Reopen", off(handsBack2)},
		{"what lies before the beginning goes back", "Group/NothingFromBefore", off(handsBackBefore)},
		{"two claim a message", "Group/G1_OneClaim", off(claimsTwice)},
		{"two claim a message at once", "Group/G1_ClaimsAtOnce", off(claimsTwice)},
		{"a passed message is claimed", "Group/OnlyWhatIsToGive", off(claimsBefore)},
		{"what was claimed from Again stays there", "Group/G2_Again/Release", off(staysAgain)},
		{"Claimed is forgotten", "Group/ClaimedReopen", off(forgetsClaims)},
		{"Claimed is empty", "Group/Claimed", off(forgetsClaims)},
		{"SaveGroup goes back", "Group/SaveForwardOnly", off(savesBack)},
		{"SaveGroup does nothing", "Group/SaveForwardOnly", off(savesNothing)},
		{"what is passed stays in Again", "Group/Passed", off(keepsPassed)},
		{"a clean start hands nothing back", "Group/CleanStartHandsBack", off(cleanStartsQuiet)},
		{"the end of a clean session hands nothing back", "Group/CleanSessionHandsBack", off(keepsAll)},
		{"a claim sent again is a second one", "Group/ClaimRetried", off(retryIsClaim)},
		{"G4: a claim moves the member's vector", "Group/G4_VectorStays/Reopen", func(b *broken) {
			b.claimed = func(b *broken, got []store.Claimed) {
				for i := range got {
					got[i].Cursor.After = got[i].Cursor.After.Clone()
					for _, f := range got[i].Cursor.Flight {
						if f.Group != "" {
							got[i].Cursor.After.Advance(f.Mark)
						}
					}
				}
			}
		}},
		{"G4: what was handed back moves the member's vector", "Group/G4_VectorStays/Release", func(b *broken) {
			b.claimed = func(b *broken, got []store.Claimed) {
				b.model(func(m *Model) {
					for i := range got {
						got[i].Cursor.After = got[i].Cursor.After.Clone()
						for _, d := range m.Records(got[i].ClientID, got[i].SID, 0) {
							if d.Group != "" && d.QoS == 1 {
								got[i].Cursor.After.Advance(d.Mark)
							}
						}
					}
				})
			}
		}},
		{"the record forgets its group", "Group/G1_OneClaim", bendRecords(func(d *schema.Delivery) { d.Group = "" })},
		{"groups are taken for one by their filter", "Group/G1_OneClaim", bendRecords(func(d *schema.Delivery) {
			if d.Group == "$share/h/t/1" {
				d.Group = sharedT
			}
		})},
		{"a refused claim ends the session's batch", "Group/ClaimedGoesOn", func(b *broken) {
			b.record = func(b *broken, batch []schema.Delivery) []error {
				errs := make([]error, len(batch))
				lost := map[schema.Owner]error{}
				for i := range batch {
					if errs[i] = lost[batch[i].Owner]; errs[i] == nil {
						errs[i] = b.Memory.Record(context.Background(), batch[i:i+1])[0]
						if errors.Is(errs[i], store.ErrClaimed) {
							lost[batch[i].Owner] = errs[i]
						}
					}
				}
				return errs
			}
		}},
		{"a refused claim is stored all the same", "Group/ClaimedGoesOn", func(b *broken) {
			b.record = func(b *broken, batch []schema.Delivery) []error {
				errs := b.Memory.Record(context.Background(), batch)
				b.model(func(m *Model) {
					for i := range batch {
						if errors.Is(errs[i], store.ErrClaimed) {
							m.Record(&batch[i])
						}
					}
				})
				return errs
			}
		}},
		{"shared subscriptions are counted twice", "Group/Counts", func(b *broken) {
			b.counts = func(_ *broken, c store.Counts) store.Counts {
				c.Subscriptions += c.Shared
				return c
			}
		}},
	}
}
