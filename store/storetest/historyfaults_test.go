package storetest

import (
	"context"
	"slices"

	"rewindmq/schema"
	"rewindmq/store/history"
)

func (b *broken) ListDeliveries(ctx context.Context, of history.Query, after string, limit int) ([]history.Delivery, string, error) {
	if b.asked != nil {
		b.asked(&of, &after)
	}
	list, next, err := b.Memory.ListDeliveries(ctx, of, after, limit)
	if err == nil && b.told != nil {
		list = b.told(slices.Clone(list))
	}
	return list, next, err
}

func told(fn func(*history.Delivery)) func(*broken) {
	return func(b *broken) {
		b.told = func(list []history.Delivery) []history.Delivery {
			for i := range list {
				fn(&list[i])
			}
			return list
		}
	}
}

func historyFaults() []fault {
	return []fault{
		{"a delivery of the message is left out", "History/Message", func(b *broken) {
			b.told = func(list []history.Delivery) []history.Delivery { return list[min(1, len(list)):] }
		}},
		{"the client is not looked at", "History/Message", func(b *broken) {
			b.asked = func(of *history.Query, _ *string) {
				if !of.MessageID.IsZero() {
					of.ClientID = ""
				}
			}
		}},
		{"the time is not told", "History/Message", told(func(d *history.Delivery) { d.Created = d.Created.AddDate(0, 0, 1) })},
		{"a fence is told", "History/Client", func(b *broken) {
			b.told = func(list []history.Delivery) []history.Delivery {
				return append(list, history.Delivery{Delivery: schema.Delivery{ID: schema.ID{1}, Seq: 1 << 40}})
			}
		}},
		{"a page tells one twice", "History/Pages", func(b *broken) {
			b.told = func(list []history.Delivery) []history.Delivery {
				if len(list) > 1 {
					list[1] = list[0]
				}
				return list
			}
		}},
		{"any page is taken", "History/Pages", func(b *broken) {
			b.asked = func(_ *history.Query, after *string) {
				if *after == "never given" {
					*after = ""
				}
			}
		}},
		{"all is acknowledged", "History/State", told(func(d *history.Delivery) { d.State = history.Acknowledged })},
		{"nothing is received", "History/State", told(func(d *history.Delivery) {
			if d.State == history.Received {
				d.State = history.Sent
			}
		})},
		{"nothing is dropped", "History/State", told(func(d *history.Delivery) {
			if d.State == history.Dropped {
				d.State = history.Acknowledged
			}
		})},
		{"a former session's deliveries are acknowledged", "History/State", told(func(d *history.Delivery) {
			if d.State == history.Sent {
				d.State = history.Acknowledged
			}
		})},
		{"states are lost with the process", "History/Reopen", func(b *broken) {
			b.reopened = func(b *broken) {
				b.told = func(list []history.Delivery) []history.Delivery {
					for i := range list {
						list[i].State = history.Sent
					}
					return list
				}
			}
		}},
	}
}
