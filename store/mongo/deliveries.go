package mongo

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"rewindmq/store/history"
)

// ListDeliveries lists deliveries, see history.Reader. Of a message it tells also what
// other brokers have written in the article's shape; of a client only what has a
// session.
func (s *Store) ListDeliveries(ctx context.Context, of history.Query, after string, limit int) ([]history.Delivery, string, error) {
	if err := s.enter(ctx); err != nil {
		return nil, "", err
	}
	ctx, cancel := s.call(ctx)
	defer cancel()
	if limit <= 0 || limit > history.MaxPage {
		limit = history.MaxPage
	}
	from, ok := parsePage(after)
	if !ok {
		return nil, "", fmt.Errorf("%w: %q", history.ErrPage, after)
	}
	list := s.deliveriesTo
	if !of.MessageID.IsZero() {
		list = s.deliveriesOf
	}
	docs, next, err := list(ctx, of, from, limit)
	if err != nil {
		return nil, "", s.failed(ctx, "list_deliveries", err)
	}
	out, err := s.withStates(ctx, docs)
	if err != nil {
		return nil, "", s.failed(ctx, "list_deliveries", err)
	}
	if next == nil {
		return out, "", nil
	}
	return out, next.String(), nil
}

// deliveryPage is where a page begins. To a client: behind the record (a, b) of a
// session and its seq. Of a message: behind the first b records of the client, in the
// order of the index {messageId, clientId}.
type deliveryPage struct {
	a, b   int64
	client string
}

func (p *deliveryPage) String() string { return fmt.Sprintf("%d.%d.%s", p.a, p.b, p.client) }

func parsePage(text string) (p deliveryPage, ok bool) {
	if text == "" {
		return p, true
	}
	parts := strings.SplitN(text, ".", 3)
	if len(parts) != 3 {
		return p, false
	}
	var errs [2]error
	p.a, errs[0] = strconv.ParseInt(parts[0], 10, 64)
	p.b, errs[1] = strconv.ParseInt(parts[1], 10, 64)
	p.client = parts[2]
	return p, errs[0] == nil && errs[1] == nil && p.a >= 0 && p.b >= 0
}

// deliveriesOf gives the records of a message.
func (s *Store) deliveriesOf(ctx context.Context, of history.Query, from deliveryPage, limit int) ([]recordDoc, *deliveryPage, error) {
	filter := fields("messageId", bson.ObjectID(of.MessageID))
	switch {
	case of.ClientID != "":
		filter = append(filter, bson.E{Key: "clientId", Value: of.ClientID})
	case from.client != "":
		filter = append(filter, bson.E{Key: "clientId", Value: fields("$gte", from.client)})
	}
	docs, err := s.readHistory(ctx, filter, options.Find().SetHint("messageId_clientId").
		SetSort(fields("messageId", 1, "clientId", 1)).SetSkip(from.b).SetLimit(int64(limit)+1))
	if err != nil || len(docs) <= limit {
		return docs, nil, err
	}
	docs = docs[:limit]
	next := &deliveryPage{client: docs[limit-1].ClientID}
	if next.client == from.client {
		next.b = from.b
	}
	for _, d := range docs {
		if d.ClientID == next.client {
			next.b++
		}
	}
	return docs, next, nil
}

// deliveriesTo gives the records of a client, session by session.
func (s *Store) deliveriesTo(ctx context.Context, of history.Query, from deliveryPage, limit int) ([]recordDoc, *deliveryPage, error) {
	var docs []recordDoc
	for _, rest := range []bson.D{
		fields("sid", from.a, "seq", fields("$gt", from.b)),
		fields("sid", fields("$gt", from.a)),
	} {
		filter := append(fields("clientId", of.ClientID, "messageId", fields("$exists", true)), rest...)
		more, err := s.readHistory(ctx, filter, options.Find().SetHint("clientId_sid_seq").
			SetSort(fields("clientId", 1, "sid", 1, "seq", 1)).SetLimit(int64(limit+1-len(docs))))
		if err != nil {
			return nil, nil, err
		}
		if docs = append(docs, more...); len(docs) > limit {
			last := &docs[limit-1]
			return docs[:limit], &deliveryPage{a: last.SID, b: last.Seq}, nil
		}
	}
	return docs, nil, nil
}

func (s *Store) readHistory(ctx context.Context, filter bson.D, o *options.FindOptionsBuilder) ([]recordDoc, error) {
	cur, err := s.c.published.Find(ctx, filter, o)
	if err != nil {
		return nil, fmt.Errorf("mongo: read of records: %w", err)
	}
	var docs []recordDoc
	if err := cur.All(ctx, &docs); err != nil {
		return nil, fmt.Errorf("mongo: read of records: %w", err)
	}
	return docs, nil
}

// withStates tells what is known of each record, by the saved places of their sessions.
func (s *Store) withStates(ctx context.Context, docs []recordDoc) ([]history.Delivery, error) {
	places, err := s.readPlaces(ctx, docs)
	if err != nil {
		return nil, err
	}
	out := make([]history.Delivery, 0, len(docs))
	for i := range docs {
		d := docs[i].delivery()
		state := history.StateOf(&d, nil)
		if p := places[d.ClientID]; p != nil && uint64(p.SID) == d.SID {
			c := p.sessionCursor()
			state = history.StateOf(&d, &c)
		}
		out = append(out, history.Delivery{Delivery: d, State: state})
	}
	return out, nil
}

// readPlaces reads of the clients' cursors what lies in flight of these records alone: a
// flight may have 65,535 entries.
func (s *Store) readPlaces(ctx context.Context, docs []recordDoc) (map[string]*placeDoc, error) {
	in, seqs, seen := bson.A{}, bson.A{}, map[string]bool{}
	for i := range docs {
		if d := &docs[i]; d.SID != 0 {
			seqs = append(seqs, d.Seq)
			if !seen[d.ClientID] {
				seen[d.ClientID] = true
				in = append(in, d.ClientID)
			}
		}
	}
	if len(in) == 0 {
		return nil, nil
	}
	cur, err := s.c.cursor.Aggregate(ctx, mongo.Pipeline{
		{{Key: "$match", Value: fields("_id", fields("$in", in))}},
		{{Key: "$project", Value: fields("sid", 1, "seq", 1,
			"flight", ex("$filter", fields("input", "$flight", "as", "f", "cond", ex("$in", "$$f.seq", seqs))))}},
	})
	if err != nil {
		return nil, fmt.Errorf("mongo: read of cursors: %w", err)
	}
	var list []placeDoc
	if err := cur.All(ctx, &list); err != nil {
		return nil, fmt.Errorf("mongo: read of cursors: %w", err)
	}
	places := make(map[string]*placeDoc, len(list))
	for i := range list {
		places[list[i].ID] = &list[i]
	}
	return places, nil
}
