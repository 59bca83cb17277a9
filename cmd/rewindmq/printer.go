package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// printer prints a list: a table, or an array with one value on a line. What stands before the first row is printed with
// it, or at the end of a list that is empty: where nobody answered, nothing is.
type printer struct {
	json  bool
	out   io.Writer
	table *tabwriter.Writer
	head  []string
	n     int
}

func (o *operator) printer(out io.Writer, head ...string) *printer {
	return &printer{json: o.output == "json", out: out, table: tabwriter.NewWriter(out, 0, 8, 2, ' ', 0), head: head}
}

// begin prints what stands before the first row.
func (p *printer) begin() error {
	if p.json {
		_, err := fmt.Fprint(p.out, "[")
		return err
	}
	_, err := fmt.Fprintln(p.table, strings.Join(p.head, "\t"))
	return err
}

// rowsAligned bounds the rows that a table holds back to align them.
const rowsAligned = 1000

func (p *printer) print(v any, cells ...string) error {
	if p.n == 0 {
		if err := p.begin(); err != nil {
			return err
		}
	}
	p.n++
	if !p.json {
		_, err := fmt.Fprintln(p.table, strings.Join(cells, "\t"))
		if err == nil && p.n%rowsAligned == 0 {
			err = p.table.Flush()
		}
		return err
	}
	text, err := exactJSON(v)
	if err != nil {
		return err
	}
	sep := ",\n"
	if p.n == 1 {
		sep = "\n"
	}
	_, err = fmt.Fprint(p.out, sep, text)
	return err
}

// end ends the list, which err has cut short if it is not nil, and returns err with its own.
func (p *printer) end(err error) error {
	if p.n == 0 {
		if err != nil {
			return err
		}
		if err := p.begin(); err != nil {
			return err
		}
	}
	if !p.json {
		return errors.Join(err, p.table.Flush())
	}
	if p.n > 0 {
		fmt.Fprintln(p.out)
	}
	_, failed := fmt.Fprintln(p.out, "]")
	return errors.Join(err, failed)
}
