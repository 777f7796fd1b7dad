//! Gathers the records of a test run: `lab-results TARGET`.

fn main() -> anyhow::Result<()> {
    let target = std::env::args().nth(1).unwrap_or_else(|| "test-e2e".into());
    let path = lab::results::gather(&target)?;
    println!("results in {}", path.display());
    Ok(())
}
