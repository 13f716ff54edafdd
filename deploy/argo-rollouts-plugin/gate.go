package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// How much longer than weir waits a request may take.
const slack = 5 * time.Second

// The longest answer that is read, in bytes.
const longestAnswer = 1 << 20

// answer is what weir says of a VirtualService.
type answer struct {
	Live    bool    `json:"live"`
	Message string  `json:"message"`
	Routes  []route `json:"routes"`
}

// route is a weighted route that is in force.
type route struct {
	// Field is its place in the VirtualService, such as spec.http[0].
	Field        string        `json:"field"`
	Name         string        `json:"name"`
	Destinations []destination `json:"destinations"`
}

type destination struct {
	// Host is fully qualified.
	Host   string `json:"host"`
	Subset string `json:"subset"`
	// Weight is in percent.
	Weight float64 `json:"weight"`
}

// gate asks weir.
type gate struct {
	url    *url.URL
	wait   time.Duration
	client *http.Client
}

func newGate(address string, wait time.Duration) (*gate, error) {
	base, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("--gates: %w", err)
	}
	if (base.Scheme != "http" && base.Scheme != "https") || base.Host == "" {
		return nil, fmt.Errorf("--gates: %q is not a URL such as http://weir.weir-system:15018", address)
	}
	if wait < 0 || wait > 20*time.Second {
		return nil, fmt.Errorf("--wait: %s is not between 0s and 20s", wait)
	}
	return &gate{base, wait, &http.Client{Timeout: wait + slack}}, nil
}

// live asks whether the newest version of a VirtualService is live, and for its weights.
func (g *gate) live(namespace, name string) (*answer, error) {
	query := url.Values{
		"kind": {"virtualservice"}, "namespace": {namespace}, "name": {name}, "timeout": {g.wait.String()},
	}
	asked := g.url.JoinPath("/gates/live")
	asked.RawQuery = query.Encode()
	response, err := g.client.Get(asked.String())
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, longestAnswer))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", asked, err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s: %s", asked, response.Status, body)
	}
	var found answer
	if err := json.Unmarshal(body, &found); err != nil {
		return nil, fmt.Errorf("%s: %w", asked, err)
	}
	return &found, nil
}
