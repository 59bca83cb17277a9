package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"rewindmq/cmd/internal/exit"
)

// answeredBy is a header of the API's refusals. Without it a 404 is that of some other server.
const answeredBy = "X-Rewindmq-Api"

// callTimeout bounds one call.
const callTimeout = 30 * time.Second

// Client calls the API of the broker on this machine. Errors carry exit codes: Connect when nobody answers, Auth when
// the broker does not serve the caller, Failed with what it said.
type Client struct{ base, addr string }

// Dial returns a client of the broker whose configuration has this http.addr. It connects to nobody yet.
func Dial(addr string) (*Client, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("http.addr %s: %w", addr, err)
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		host = "127.0.0.1" // an address to listen on is not one to call
	}
	return &Client{base: "http://" + net.JoinHostPort(host, port), addr: addr}, nil
}

// EachSession calls fn for every session, in the order of the bytes of their client ids.
func (c *Client) EachSession(ctx context.Context, fn func(Session) error) error {
	return eachPage(ctx, c, SessionsPath, url.Values{}, func(p *sessionPage) (string, error) {
		for _, s := range p.Sessions {
			if err := fn(s); err != nil {
				return "", err
			}
		}
		return p.Next, nil
	})
}

// Session returns one session.
func (c *Client) Session(ctx context.Context, clientID string) (Session, error) {
	var s Session
	err := c.call(ctx, http.MethodGet, SessionPath, url.Values{"client": {clientID}}, &s)
	return s, err
}

// EndSession ends a session.
func (c *Client) EndSession(ctx context.Context, clientID string) error {
	return c.call(ctx, http.MethodDelete, SessionPath, url.Values{"client": {clientID}}, nil)
}

// EachRetained calls fn for every retained message whose topic matches filter, in the order of the bytes of the topics.
func (c *Client) EachRetained(ctx context.Context, filter string, fn func(Message) error) error {
	return eachPage(ctx, c, RetainedPath, url.Values{"filter": {filter}}, func(p *messagePage) (string, error) {
		for _, m := range p.Messages {
			if err := fn(m); err != nil {
				return "", err
			}
		}
		return p.Next, nil
	})
}

// ClearRetained removes the retained message of a topic.
func (c *Client) ClearRetained(ctx context.Context, topic string) error {
	return c.call(ctx, http.MethodDelete, RetainedPath, url.Values{"topic": {topic}}, nil)
}

// EachDelivery calls fn for every delivery to a client, of a message, or both; one of them is set. Those of a session
// are in the order in which they were sent.
func (c *Client) EachDelivery(ctx context.Context, clientID, message string, fn func(Delivery) error) error {
	q := url.Values{}
	if clientID != "" {
		q.Set("client", clientID)
	}
	if message != "" {
		q.Set("message", message)
	}
	return eachPage(ctx, c, DeliveriesPath, q, func(p *deliveryPage) (string, error) {
		for _, d := range p.Deliveries {
			if err := fn(d); err != nil {
				return "", err
			}
		}
		return p.Next, nil
	})
}

// EachMessage calls fn for every message of the log whose topic matches filter, by a publisher, from one time to another,
// that one not included; what is empty or zero is no bound.
func (c *Client) EachMessage(ctx context.Context, filter, clientID string, from, to time.Time, fn func(Message) error) error {
	q := url.Values{}
	for name, value := range map[string]string{"filter": filter, "client": clientID} {
		if value != "" {
			q.Set(name, value)
		}
	}
	for name, at := range map[string]time.Time{"from": from, "to": to} {
		if !at.IsZero() {
			q.Set(name, at.UTC().Format(time.RFC3339))
		}
	}
	return eachPage(ctx, c, MessagesPath, q, func(p *messagePage) (string, error) {
		for _, m := range p.Messages {
			if err := fn(m); err != nil {
				return "", err
			}
		}
		return p.Next, nil
	})
}

func eachPage[P any](ctx context.Context, c *Client, path string, q url.Values, each func(*P) (next string, err error)) error {
	for {
		var p P
		if err := c.call(ctx, http.MethodGet, path, q, &p); err != nil {
			return err
		}
		next, err := each(&p)
		if err != nil || next == "" {
			return err
		}
		q.Set("after", next)
	}
}

func (c *Client) call(ctx context.Context, method, path string, q url.Values, into any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	address := c.base + path
	if len(q) > 0 {
		address += "?" + q.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, address, nil)
	if err != nil {
		return fmt.Errorf("call the broker: %w", err)
	}
	transport := &http.Transport{DisableKeepAlives: true} // no proxy: the broker is on this machine
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return &exit.Error{Code: exit.Connect, Err: fmt.Errorf("call the broker: %w", err), Try: "rewindmq healthcheck --http " + c.addr}
	}
	defer func() { _ = resp.Body.Close() }()
	switch resp.StatusCode {
	case http.StatusOK:
		if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
			return exit.With(exit.Failed, fmt.Errorf("read the broker's answer: %w", err))
		}
		return nil
	case http.StatusNoContent:
		return nil
	}
	said, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	err = errors.New(strings.TrimSpace(string(said)))
	switch resp.StatusCode {
	case http.StatusForbidden:
		return exit.With(exit.Auth, err)
	case http.StatusNotFound, http.StatusConflict:
		if resp.Header.Get(answeredBy) != "" {
			return exit.With(exit.Failed, err) // the text says it all
		}
	}
	return exit.With(exit.Failed, fmt.Errorf("the broker says %s: %w", strconv.Itoa(resp.StatusCode), err))
}
