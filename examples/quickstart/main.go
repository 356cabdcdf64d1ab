// Quickstart is the first example of README.md as a whole program. It needs a Redis on
// localhost:6379.
package main

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
)

// A Product is what the remote call returns.
type Product struct {
	SKU   string
	Price int
}

// fetchProduct stands for a slow remote call.
func fetchProduct(ctx context.Context, sku string) (Product, error) {
	select {
	case <-time.After(time.Second):
		return Product{SKU: sku, Price: 250}, nil
	case <-ctx.Done():
		return Product{}, ctx.Err()
	}
}

func run(ctx context.Context) error {
	rdb := redis.NewClient(&redis.Options{
		Addr:                  "localhost:6379",
		DialTimeout:           time.Second,
		ReadTimeout:           time.Second,
		WriteTimeout:          time.Second,
		ContextTimeoutEnabled: true, // a command ends when its context does
	})
	defer rdb.Close()

	products, err := fetchonce.New(rdb, fetchonce.Options[Product]{
		Prefix: "products",      // the namespace of the keys in Redis
		TTL:    5 * time.Minute, // how long a value is fresh
	})
	if err != nil {
		return err
	}
	defer products.Close()

	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	product, err := products.Get(ctx, "sku-42", fetchProduct)
	if err != nil {
		return err
	}
	fmt.Println(product.SKU, product.Price)
	return nil
}

func main() {
	if err := run(context.Background()); err != nil {
		log.Fatal(err)
	}
}
