package mongo

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"regexp"
	"strings"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"rewindmq/schema"
	"rewindmq/store/history"
)

// messageScan is the default of Options.messageScan: less than a second's work.
const messageScan = 200_000

// ListMessages lists messages in the order of their ids, see history.Reader: also those
// that were there before the first start, and those of other programs that wait for their
// adoption. The place of a page is an id.
func (s *Store) ListMessages(ctx context.Context, of history.MessageQuery, after string, limit int) ([]*schema.Message, string, error) {
	if err := s.enter(ctx); err != nil {
		return nil, "", err
	}
	ctx, cancel := s.call(ctx)
	defer cancel()
	if limit <= 0 || limit > history.MaxPage {
		limit = history.MaxPage
	}
	p := &messagePage{s: s, of: of, limit: limit}
	if after != "" {
		id, err := schema.ParseID(after)
		if err != nil {
			return nil, "", fmt.Errorf("%w: %q", history.ErrPage, after)
		}
		p.after = bson.ObjectID(id)
	}
	if err := p.read(ctx); err != nil {
		return nil, "", s.failed(ctx, "list_messages", err)
	}
	if p.next.IsZero() {
		return p.list, "", nil
	}
	return p.list, p.next.Hex(), nil
}

// messagePage is a page that is being filled.
type messagePage struct {
	s     *Store
	of    history.MessageQuery
	after bson.ObjectID // zero: from the start
	limit int

	list []*schema.Message
	next bson.ObjectID // zero: there are no more
}

// read lets the server choose between the index of topics and that of ids where one of
// them leads there. Otherwise it looks at the next messageScan ids.
func (p *messagePage) read(ctx context.Context) error {
	o := options.Find().SetSort(fields("_id", 1)).SetBatchSize(int32(min(p.limit+1, 200)))
	bound := bson.NilObjectID
	if p.of.ClientID != "" || schema.Wildcard(p.of.Filter) != "" {
		var err error
		if bound, err = p.bound(ctx); err != nil {
			return err
		}
		o.SetHint("_id_")
	}
	cur, err := p.s.c.message.Find(ctx, p.filter(bound), o)
	if err != nil {
		return fmt.Errorf("mongo: read of messages: %w", err)
	}
	defer func() { _ = cur.Close(context.WithoutCancel(ctx)) }()
	bytes := 0
	for cur.Next(ctx) {
		m, at, err := decodeMessage(cur.Current)
		if err != nil {
			return fmt.Errorf("mongo: read of messages: %w", err)
		}
		if at.stop != "" || !p.of.Match(m) {
			continue
		}
		if n := len(p.list); n == p.limit || bytes >= history.MaxPageBytes {
			p.next = bson.ObjectID(p.list[n-1].ID)
			return nil
		}
		p.list = append(p.list, m)
		bytes += m.Size()
	}
	if err := cur.Err(); err != nil {
		return fmt.Errorf("mongo: read of messages: %w", err)
	}
	p.next = bound
	return nil
}

// bound gives the id up to which this page looks; zero: to the end.
func (p *messagePage) bound(ctx context.Context) (bson.ObjectID, error) {
	var d struct {
		ID bson.ObjectID `bson:"_id"`
	}
	err := p.s.c.message.FindOne(ctx, fields("_id", p.ids(bson.NilObjectID)), options.FindOne().SetHint("_id_").
		SetSort(fields("_id", 1)).SetSkip(int64(p.s.o.messageScan)-1).SetProjection(fields("_id", 1))).Decode(&d)
	if errors.Is(err, mongo.ErrNoDocuments) {
		return bson.NilObjectID, nil
	}
	if err != nil {
		return bson.NilObjectID, fmt.Errorf("mongo: read of messages: %w", err)
	}
	return d.ID, nil
}

// ids is the range of the page.
func (p *messagePage) ids(bound bson.ObjectID) bson.D {
	from := fields("$gte", idAt(p.of.From))
	if !p.after.IsZero() && (p.of.From.IsZero() || p.after.Hex() >= idAt(p.of.From).Hex()) {
		from = fields("$gt", p.after)
	}
	if !bound.IsZero() {
		from = append(from, bson.E{Key: "$lte", Value: bound})
	}
	if !p.of.To.IsZero() {
		from = append(from, bson.E{Key: "$lt", Value: idAt(p.of.To)})
	}
	return from
}

// idAt is the first id of a second.
func idAt(at time.Time) (id bson.ObjectID) {
	if !at.IsZero() {
		binary.BigEndian.PutUint32(id[:], uint32(min(max(at.Unix(), 0), math.MaxUint32)))
	}
	return id
}

func (p *messagePage) filter(bound bson.ObjectID) bson.D {
	f := fields("_id", p.ids(bound))
	switch {
	case p.of.Filter == "":
	case schema.Wildcard(p.of.Filter) == "":
		f = append(f, bson.E{Key: "topic", Value: p.of.Filter})
	default:
		f = append(f, bson.E{Key: "topic", Value: bson.Regex{Pattern: topicPattern(p.of.Filter)}})
	}
	if p.of.ClientID != "" {
		f = append(f, bson.E{Key: "clientId", Value: p.of.ClientID})
	}
	return f
}

// topicPattern makes the regular expression of a filter with wildcards. What it lets
// through is matched once more here.
func topicPattern(filter string) string {
	levels := strings.Split(filter, "/")
	var b strings.Builder
	b.WriteString("^")
	for i, l := range levels {
		switch {
		case l == "#" && i == 0:
			return b.String()
		case l == "#":
			b.WriteString("(/|$)")
			return b.String()
		}
		if i > 0 {
			b.WriteString("/")
		}
		if l == "+" {
			b.WriteString("[^/]*")
		} else {
			b.WriteString(regexp.QuoteMeta(l))
		}
	}
	b.WriteString("$")
	return b.String()
}
