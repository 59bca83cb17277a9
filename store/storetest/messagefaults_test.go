package storetest

import (
	"context"
	"slices"
	"time"

	"rewindmq/schema"
	"rewindmq/store/history"
)

func (b *broken) ListMessages(ctx context.Context, of history.MessageQuery, after string, limit int) ([]*schema.Message, string, error) {
	if b.wanted != nil {
		b.wanted(&of, &after, &limit)
	}
	list, next, err := b.Memory.ListMessages(ctx, of, after, limit)
	if err == nil && b.found != nil {
		list, next = b.found(slices.Clone(list), next)
	}
	return list, next, err
}

func messageFaults() []fault {
	queries := func(fn func(of *history.MessageQuery)) func(*broken) {
		return func(b *broken) { b.wanted = func(of *history.MessageQuery, _ *string, _ *int) { fn(of) } }
	}
	finds := func(fn func(list []*schema.Message, next string) ([]*schema.Message, string)) func(*broken) {
		return func(b *broken) { b.found = fn }
	}
	return []fault{
		{"the filter of messages is not looked at", "Messages/Query", queries(func(of *history.MessageQuery) { of.Filter = "" })},
		{"topics with $ are left out", "Messages/Query", queries(func(of *history.MessageQuery) {
			if of.Filter == "" {
				of.Filter = "#"
			}
		})},
		{"the publisher is not looked at", "Messages/Query", queries(func(of *history.MessageQuery) { of.ClientID = "" })},
		{"the first time is left out", "Messages/Query", queries(func(of *history.MessageQuery) {
			if !of.From.IsZero() {
				of.From = of.From.Add(time.Second)
			}
		})},
		{"the last time is told", "Messages/Query", queries(func(of *history.MessageQuery) {
			if !of.To.IsZero() {
				of.To = of.To.Add(time.Second)
			}
		})},
		{"a message is told twice", "Messages/Query", finds(func(list []*schema.Message, next string) ([]*schema.Message, string) {
			if len(list) > 1 {
				list[1] = list[0]
			}
			return list, next
		})},
		{"the payload is not told", "Messages/Query", finds(func(list []*schema.Message, next string) ([]*schema.Message, string) {
			for i := range list {
				m := *list[i]
				m.Payload = nil
				list[i] = &m
			}
			return list, next
		})},
		{"a page of messages ends the list", "Messages/Query", finds(func(list []*schema.Message, _ string) ([]*schema.Message, string) { return list, "" })},
		{"a page of messages is one too long", "Messages/Pages", func(b *broken) {
			b.wanted = func(_ *history.MessageQuery, _ *string, limit *int) { *limit++ }
		}},
		{"any page of messages is taken", "Messages/Pages", func(b *broken) {
			b.wanted = func(_ *history.MessageQuery, after *string, _ *int) {
				if *after == "never given" {
					*after = ""
				}
			}
		}},
		{"large messages make large pages", "Messages/Bytes", func(b *broken) {
			b.found = func(list []*schema.Message, next string) ([]*schema.Message, string) {
				for next != "" && b.state == stateRunning {
					more, n, err := b.Memory.ListMessages(context.Background(), history.MessageQuery{}, next, 0)
					if err != nil {
						break
					}
					list, next = append(list, more...), n
				}
				return list, next
			}
		}},
		{"messages are lost with the process", "Messages/Reopen", func(b *broken) {
			b.reopened = func(b *broken) {
				b.found = func([]*schema.Message, string) ([]*schema.Message, string) { return nil, "" }
			}
		}},
	}
}
