"""What holds bytes and entries, and whom they are charged to: it knows neither JSON nor sockets."""
