//! Removes what a killed run of the lab may have left behind.

fn main() {
    lab::net::remove_leftovers();
}
