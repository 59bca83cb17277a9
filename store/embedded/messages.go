package embedded

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"rewindmq/schema"
	"rewindmq/store/history"
)

// ListMessages implements history.Reader. It reads as a replay does, by the index of
// topics or by a scan; a page ends at a position. Epochs that are older than asked for are
// not looked at.
func (l *Log) ListMessages(ctx context.Context, of history.MessageQuery, after string, limit int) (list []*schema.Message, next string, err error) {
	if limit <= 0 || limit > history.MaxPage {
		limit = history.MaxPage
	}
	at := uint64(0)
	if after != "" {
		if at, err = strconv.ParseUint(after, 10, 64); err != nil {
			return nil, "", fmt.Errorf("%w: %q", history.ErrPage, after)
		}
	}
	if err := l.wait(ctx); err != nil {
		return nil, "", err
	}
	start := time.Now()
	p := &messagePage{l: l, of: of, limit: limit}
	err = p.read(ctx, at)
	l.observe("list_messages", start, err)
	if err != nil {
		return nil, "", err
	}
	return p.list, p.next, nil
}

// messagePage is a page that is being filled.
type messagePage struct {
	l     *Log
	of    history.MessageQuery
	limit int

	list  []*schema.Message
	bytes int
	next  string
}

func (p *messagePage) read(ctx context.Context, at uint64) error {
	r := &reader{l: p.l, at: at, upTo: p.l.ring.head.Load(), all: p.of.Filter == ""}
	if err := p.l.enter(); err != nil {
		return err
	}
	err := r.resolve([]string{p.of.Filter})
	p.l.leave()
	if err != nil {
		return err
	}
	newest := p.newest()
	r.nextSpan()
	for looked := r.at; r.at < r.upTo && (r.all || r.topics == nil || len(r.topics) > 0); {
		if err := ctx.Err(); err != nil {
			return err
		}
		if r.at-looked >= uint64(p.l.o.historyScan) {
			p.next = strconv.FormatUint(r.at, 10)
			return nil
		}
		if last, ok := newest[r.span.id]; ok && last.Unix() < p.of.From.Unix() {
			r.at = r.span.last
			looked = r.at
			r.nextSpan()
			continue
		}
		if err := r.fill(); err != nil {
			return err
		}
		if p.take(r) {
			return nil
		}
	}
	return nil
}

// take moves what a reader has found to the page; true: the page is full.
func (p *messagePage) take(r *reader) bool {
	for i, m := range r.ready {
		if !p.of.Match(m) {
			continue
		}
		p.list = append(p.list, m)
		if p.bytes += m.Size(); len(p.list) < p.limit && p.bytes < history.MaxPageBytes {
			continue
		}
		if i+1 < len(r.ready) || r.at < r.upTo {
			p.next = strconv.FormatUint(m.Mark.N, 10)
		}
		return true
	}
	r.ready = nil
	return false
}

// newest tells of each epoch that is over when it was.
func (p *messagePage) newest() map[uint32]time.Time {
	out := map[uint32]time.Time{}
	if p.of.From.IsZero() {
		return out
	}
	all := p.l.epochs.list()
	for i := range all[:max(len(all)-1, 0)] {
		out[all[i].id] = all[i].newest
	}
	return out
}
